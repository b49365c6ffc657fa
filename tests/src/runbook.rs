//! Commands of the documents for operators, which tests carry out as they are written.

use anyhow::{Context, Result, ensure};

/// Commands of a document: its blocks of the language `sh`, without the indentation of list items.
#[derive(Debug)]
pub struct Runbook(Vec<String>);

impl Runbook {
    /// Finds the commands in a document.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut blocks = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(indentation) = line.strip_suffix("```sh") else {
                continue;
            };
            let block: Vec<_> = lines
                .by_ref()
                .map(|line| line.strip_prefix(indentation).unwrap_or(line))
                .take_while(|line| *line != "```")
                .collect();
            blocks.push(block.join("\n"));
        }
        Self(blocks)
    }

    /// Returns the one block that contains `text`.
    ///
    /// # Errors
    /// Returns an error if no block or several contain it.
    pub fn block(&self, text: &str) -> Result<&str> {
        let mut blocks = self.0.iter().filter(|block| block.contains(text));
        let block = blocks.next().with_context(|| format!("no {text:?}"))?;
        ensure!(blocks.next().is_none(), "{text:?} is in several blocks");
        Ok(block)
    }
}
