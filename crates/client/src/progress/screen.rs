//! The last lines of a step's output as a terminal would show them.
//!
//! Knows line feeds, carriage returns, backspaces and tabs; escape sequences are dropped, so that
//! no step can move the cursor of the person's terminal.

use std::collections::VecDeque;

/// Rows remembered.
const ROWS: usize = 6;

#[derive(Default, Clone, Copy, PartialEq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Started,
    /// Inside `ESC [ … letter`.
    Control,
    /// Inside `ESC ] … BEL` or `ESC ] … ESC \`.
    Command,
}

/// A few rows of text.
#[derive(Default)]
pub(super) struct Screen {
    rows: VecDeque<Vec<char>>,
    column: usize,
    escape: Escape,
    pending: Vec<u8>,
    /// Bytes ever written; busy steps win the room there is.
    pub written: usize,
}

impl Screen {
    pub fn write(&mut self, bytes: &[u8]) {
        self.written += bytes.len();
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    text.chars().for_each(|c| self.put(c));
                    return;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    String::from_utf8_lossy(good).chars().for_each(|c| self.put(c));
                    let Some(skip) = error.error_len() else {
                        // A character cut in two waits for its other half.
                        self.pending = bad.to_vec();
                        return;
                    };
                    self.put(char::REPLACEMENT_CHARACTER);
                    rest = &bad[skip..];
                }
            }
        }
    }

    fn put(&mut self, c: char) {
        match (self.escape, c) {
            (Escape::None, '\x1b') => self.escape = Escape::Started,
            (Escape::None, '\n') => {
                self.rows.push_back(Vec::new());
                self.column = 0;
                if self.rows.len() > ROWS + 1 {
                    self.rows.pop_front();
                }
            }
            (Escape::None, '\r') => self.column = 0,
            (Escape::None, '\x08') => self.column = self.column.saturating_sub(1),
            (Escape::None, '\t') => {
                for _ in 0..8 - self.column % 8 {
                    self.print(' ');
                }
            }
            (Escape::None, c) if c.is_control() => {}
            (Escape::None, c) => self.print(c),
            (Escape::Started, '[') => self.escape = Escape::Control,
            (Escape::Started, ']') => self.escape = Escape::Command,
            (Escape::Started, _) => self.escape = Escape::None,
            (Escape::Control, c) if ('\x40'..='\x7e').contains(&c) => self.escape = Escape::None,
            (Escape::Command, '\x07') => self.escape = Escape::None,
            (Escape::Command, '\x1b') => self.escape = Escape::Started,
            (Escape::Control | Escape::Command, _) => {}
        }
    }

    fn print(&mut self, c: char) {
        if self.rows.is_empty() {
            self.rows.push_back(Vec::new());
        }
        let row = self.rows.back_mut().expect("a row was just made");
        match row.get_mut(self.column) {
            Some(cell) => *cell = c,
            None => row.push(c),
        }
        self.column += 1;
    }

    /// Rows that show anything, oldest first, cut to `width`.
    pub fn rows(&self, width: usize) -> Vec<String> {
        let shown = self.rows.iter().filter(|row| row.iter().any(|c| *c != ' '));
        let rows: Vec<String> = shown.map(|row| row.iter().take(width).collect()).collect();
        rows[rows.len().saturating_sub(ROWS)..].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_a_terminal_would() {
        let mut screen = Screen::default();
        screen.write(b"one\n10%\r20%\r\x1b[31mtw\xc3");
        screen.write(b"\xb6\n\n\x1b]0;title\x07end");
        assert_eq!(screen.rows(80), ["one", "twö", "end"]);
        for line in 0..9 {
            screen.write(format!("\n{line}").as_bytes());
        }
        assert_eq!(screen.rows(80), ["3", "4", "5", "6", "7", "8"]);
    }
}
