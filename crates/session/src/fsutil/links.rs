//! Keeps hard links valid when the first name of a file was left out: the next one becomes the
//! file and the rest point to it.

use std::collections::HashMap;

use base::gomode;

use super::Stat;

/// Rewrites link names of a listing as it passes by.
#[derive(Default)]
pub(crate) struct Promote {
    /// Name a listing gives to a file → name under which it was sent.
    sent: HashMap<String, String>,
}

impl Promote {
    pub(crate) fn apply(&mut self, stat: &mut Stat) {
        if stat.mode & (gomode::DIR | gomode::SYMLINK) != 0 {
            return;
        }
        if !stat.linkname.is_empty() {
            match self.sent.get(&stat.linkname) {
                Some(first) => {
                    stat.linkname.clone_from(first);
                    stat.size = 0;
                    return;
                }
                None => _ = self.sent.insert(std::mem::take(&mut stat.linkname), stat.path.clone()),
            }
        }
        self.sent.insert(stat.path.clone(), stat.path.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_name_takes_over() {
        let mut promote = Promote::default();
        let mut pass = |path: &str, target: &str| {
            let mut stat =
                Stat { path: path.into(), linkname: target.into(), size: 7, ..Stat::default() };
            promote.apply(&mut stat);
            (stat.linkname, stat.size)
        };
        assert_eq!(pass("b", "a"), (String::new(), 7));
        assert_eq!(pass("c", "a"), ("b".into(), 0));
        assert_eq!(pass("d", "b"), ("b".into(), 0));
        assert_eq!(pass("e", ""), (String::new(), 7));
        assert_eq!(pass("f", "e"), ("e".into(), 0));
    }
}
