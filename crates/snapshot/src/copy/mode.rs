//! Mode changes in the syntax of chmod(1): octal, or clauses such as `u=rwX,g+s,o=u-w`.
//!
//! The meaning is that of BSD's `setmode` with umask 0, quirks included, because it decides what
//! files look like: after `t` without a named class a clause concerns the sticky bit alone, and
//! `u=go` ends up as `u=o`.

/// Set-id and permission bits; what a clause without a class concerns.
const STANDARD: u32 = 0o6777;
const STICKY: u32 = 0o1000;
const EXECUTE: u32 = 0o111;

/// A parsed mode change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange(Vec<Step>);

/// The text is no mode change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mode `{0}`: invalid syntax")]
pub struct ParseModeError(pub String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Set(u32),
    Clear(u32),
    /// Set if it is a folder or was executable for anyone.
    SetIfExecutable(u32),
    /// Copies the bits of a class (shifted by `from`) to the classes in `to`.
    Copy {
        from: u32,
        to: u32,
        operator: u8,
    },
}

impl ModeChange {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Self, ParseModeError> {
        parse(text.as_bytes()).ok_or_else(|| ParseModeError(text.to_owned())).map(Self)
    }

    /// The twelve mode bits after the change.
    pub fn apply(&self, before: u32, is_folder: bool) -> u32 {
        let before = before & 0o7777;
        let mut mode = before;
        for step in &self.0 {
            match *step {
                Step::Set(bits) => mode |= bits,
                Step::Clear(bits) => mode &= !bits,
                Step::SetIfExecutable(bits) if is_folder || before & EXECUTE != 0 => mode |= bits,
                Step::SetIfExecutable(_) => {}
                Step::Copy { from, to, operator } => {
                    let value = mode >> from & 7;
                    let spread = |bits: u32| (bits << 6 | bits << 3 | bits) & to;
                    match operator {
                        b'+' => mode |= spread(value),
                        b'-' => mode &= !spread(value),
                        _ => mode = mode & !spread(7) | spread(value),
                    }
                }
            }
        }
        mode
    }
}

fn parse(text: &[u8]) -> Option<Vec<Step>> {
    if text.first()?.is_ascii_digit() {
        let mode = u32::from_str_radix(str::from_utf8(text).ok()?, 8).ok()?;
        return (mode <= 0o7777).then(|| vec![Step::Clear(0o7777), Step::Set(mode)]);
    }
    let mut steps = Vec::new();
    let mut rest = text;
    // Whether the present `=` has already cleared what it replaces.
    let mut replaced = false;
    loop {
        let mut who = 0;
        loop {
            who |= match rest.first()? {
                b'a' => STANDARD,
                b'u' => 0o4700,
                b'g' => 0o2070,
                b'o' => 0o0007,
                _ => break,
            };
            rest = &rest[1..];
        }
        loop {
            let operator = *rest.first()?;
            rest = &rest[1..];
            match operator {
                b'+' | b'-' => {}
                b'=' => replaced = false,
                _ => return None,
            }
            who &= !STICKY;
            rest = permissions(rest, operator, &mut who, &mut replaced, &mut steps);
            match rest.first() {
                None => return Some(steps),
                Some(b',') => break,
                Some(_) => {}
            }
        }
        rest = &rest[1..];
    }
}

/// Takes the letters after an operator and gives what follows them.
fn permissions<'a>(
    mut rest: &'a [u8],
    operator: u8,
    who: &mut u32,
    replaced: &mut bool,
    steps: &mut Vec<Step>,
) -> &'a [u8] {
    let (mut bits, mut conditional) = (0, 0);
    loop {
        let letter = rest.first().copied().unwrap_or(0);
        // Set-id and sticky mean nothing where only others are concerned.
        let special = *who == 0 || *who & !0o007 != 0;
        match letter {
            b'r' => bits |= 0o444,
            b'w' => bits |= 0o222,
            b'x' => bits |= EXECUTE,
            b'X' if operator == b'-' => bits |= EXECUTE,
            b'X' => conditional |= EXECUTE,
            b's' if special => bits |= 0o6000,
            b't' if special => {
                *who |= STICKY;
                bits |= STICKY;
            }
            b's' | b't' => {}
            b'u' | b'g' | b'o' => {
                if bits != 0 {
                    change(operator, *who, bits, steps);
                    bits = 0;
                }
                *replaced |= operator == b'=';
                if conditional != 0 {
                    steps.push(Step::SetIfExecutable(concerned(*who, conditional)));
                    conditional = 0;
                }
                let from = match letter {
                    b'u' => 6,
                    b'g' => 3,
                    _ => 0,
                };
                let class = |bit: u32, bits: u32| if *who & bit != 0 { bits } else { 0 };
                let to = match *who {
                    0 => 0o777,
                    _ => class(0o400, 0o700) | class(0o040, 0o070) | class(0o004, 0o007),
                };
                steps.push(Step::Copy { from, to, operator });
            }
            _ => {
                if bits != 0 || operator == b'=' && !*replaced {
                    *replaced |= operator == b'=';
                    change(operator, *who, bits, steps);
                }
                if conditional != 0 {
                    steps.push(Step::SetIfExecutable(concerned(*who, conditional)));
                }
                return rest;
            }
        }
        rest = &rest[1..];
    }
}

fn concerned(who: u32, bits: u32) -> u32 {
    if who == 0 { bits } else { who & bits }
}

fn change(operator: u8, who: u32, bits: u32, steps: &mut Vec<Step>) {
    let bits = concerned(who, bits);
    match operator {
        b'-' => steps.push(Step::Clear(bits)),
        b'+' => steps.push(Step::Set(bits)),
        _ => {
            steps.push(Step::Clear(if who == 0 { STANDARD } else { who }));
            steps.push(Step::Set(bits));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_chmod() {
        for (text, before, is_folder, after) in [
            ("644", 0o4755, false, 0o644),
            ("4755", 0, false, 0o4755),
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("go-w", 0o666, false, 0o644),
            ("a=r", 0o4755, false, 0o444),
            ("=rw,+X", 0o755, false, 0o777),
            ("=rw,+X", 0o644, false, 0o666),
            ("=rw,+X", 0o644, true, 0o777),
            ("u=rwx,go=rx", 0, false, 0o755),
            ("u=rwx,go=u-w", 0, false, 0o755),
            ("go=", 0o777, false, 0o700),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, true, 0o755),
            ("u+s", 0o755, false, 0o4755),
            ("g+s", 0o755, false, 0o2755),
            ("o+s", 0o755, false, 0o755),
            ("+t", 0o777, true, 0o1777),
            ("a-x+X", 0o755, false, 0o755),
            ("u=go", 0o034, false, 0o434),
            ("g=u", 0o640, false, 0o660),
            ("o-u", 0o746, false, 0o740),
            ("u+r-w", 0o200, false, 0o400),
        ] {
            let change = ModeChange::parse(text).unwrap();
            let found = change.apply(before, is_folder);
            assert_eq!(found, after, "{text} {before:o}: {found:o}");
        }
        for bad in ["", "u", "9", "10000", "u+q", "u+x,", "rw", "+x,,+r", "0x1", "u~x"] {
            assert!(ModeChange::parse(bad).is_err(), "{bad}");
        }
    }
}
