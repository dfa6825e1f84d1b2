//! Tables for people.

use std::fmt;

/// Rows of text under a heading; columns are as wide as their widest cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column names.
    pub fn new<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        let mut table = Table::default();
        table.row(names);
        table
    }

    /// Adds a row.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width =
            |column: usize| self.rows.iter().filter_map(move |row| row.get(column)).map(|cell| cell.chars().count());
        (0..columns).map(|column| width(column).max().unwrap_or_default()).collect()
    }

    /// The same table in Markdown.
    pub fn markdown(&self) -> String {
        let widths = self.widths();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            text.push_str(&format!("| {} |\n", padded(row, &widths).join(" | ")));
            if number == 0 {
                let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                text.push_str(&format!("| {} |\n", rules.join(" | ")));
            }
        }
        text
    }
}

fn padded(row: &[String], widths: &[usize]) -> Vec<String> {
    row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            writeln!(f, "  {}", padded(row, &widths).join("   ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["pod", "address"]);
        table.row(["longer-name", "10.0.0.1"]);
        assert_eq!(table.to_string(), "  pod           address\n  longer-name   10.0.0.1\n");
        assert_eq!(
            table.markdown(),
            "| pod         | address  |\n| ----------- | -------- |\n| longer-name | 10.0.0.1 |\n"
        );
    }
}
