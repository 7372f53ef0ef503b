//! Aligned columns.

/// Rows of cells; printed with columns padded to their widest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
    gap: usize,
}

impl Table {
    /// A table with a header and docker's gap of three blanks.
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(str::to_owned).to_vec()], gap: 3 }
    }

    /// A table without header.
    pub fn empty() -> Self {
        Self { rows: Vec::new(), gap: 3 }
    }

    /// Adds a row of any number of cells.
    pub fn cells(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// All lines; the last column is not padded.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                text.push_str(cell);
                if column + 1 < row.len() {
                    let pad = widths[column] + self.gap - cell.chars().count();
                    text.extend(std::iter::repeat_n(' ', pad));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// Cells separated by tabs, as Go's tab writer aligns them with eight-column stops.
///
/// A column is a run of consecutive lines that have a cell ended by a tab there; its width is its
/// widest cell plus one, rounded up to a multiple of eight. Tabs fill it, so that output keeps its
/// bytes.
pub fn tabbed(lines: &[Vec<String>]) -> String {
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|line| vec![0; line.len()]).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut from = 0;
        while from < lines.len() {
            let ended = |line: &Vec<String>| line.len() > column + 1;
            let to = from + lines[from..].iter().take_while(|line| ended(line)).count();
            let widest = lines[from..to].iter().map(|line| line[column].chars().count()).max();
            // An all-empty column keeps its tab: this is how sections are indented.
            let width = widest.map_or(0, |widest| (widest + 1).next_multiple_of(8));
            for row in &mut widths[from..to] {
                row[column] = width;
            }
            from = to.max(from + 1);
        }
    }
    let mut text = String::new();
    for (line, widths) in lines.iter().zip(&widths) {
        for (column, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < line.len() {
                let missing = widths[column] - cell.chars().count();
                text.extend(std::iter::repeat_n('\t', missing.div_ceil(8)));
            }
        }
        text.push('\n');
    }
    text
}

/// Shorthand for a line of [`tabbed`].
pub fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["NAME", "SIZE"]);
        table.row(["a-long-name".into(), "1B".into()]);
        assert_eq!(table.text(), "NAME          SIZE\na-long-name   1B\n");
    }

    #[test]
    fn tabs_as_go_sets_them() {
        let lines = [
            cells(["ID:", "yvui"]),
            cells(["Platforms:", "linux"]),
            cells(["Labels:"]),
            cells(["", "a.b.c.d.e:", "x"]),
            cells(["", "f:", "y"]),
        ];
        let expected = "ID:\t\tyvui\nPlatforms:\tlinux\nLabels:\n\ta.b.c.d.e:\tx\n\tf:\t\ty\n";
        assert_eq!(tabbed(&lines), expected);
    }
}
