//! Commands of the documents for operators, which tests carry out as they are written.

use anyhow::{Context, Result, ensure};

/// Commands of a document, without the indentation of list items: its blocks of the language `sh`, and those of the language
/// `console`, in which `$ ` begins a command.
#[derive(Debug)]
pub struct Runbook {
    blocks: Vec<String>,
    console_blocks: Vec<String>,
}

/// Prompt of a command.
const PROMPT: &str = "$ ";

impl Runbook {
    /// Finds the commands in a document.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (mut blocks, mut console_blocks) = (Vec::new(), Vec::new());
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let (indentation, blocks) = match line.split_once("```") {
                Some((indentation, "sh")) => (indentation, &mut blocks),
                Some((indentation, "console")) => (indentation, &mut console_blocks),
                _ => continue,
            };
            let block: Vec<_> = lines
                .by_ref()
                .map(|line| line.strip_prefix(indentation).unwrap_or(line))
                .take_while(|line| *line != "```")
                .collect();
            blocks.push(block.join("\n"));
        }
        Self {
            blocks,
            console_blocks,
        }
    }

    /// Returns the commands of the one `console` block that contains `text`.
    ///
    /// # Errors
    /// Returns an error if no block or several contain it.
    pub fn commands(&self, text: &str) -> Result<Vec<String>> {
        let mut commands: Vec<String> = Vec::new();
        for line in the_one(&self.console_blocks, text)?.lines() {
            match (line.strip_prefix(PROMPT), commands.last_mut()) {
                (Some(command), _) => commands.push(command.to_owned()),
                (None, Some(command)) => *command = format!("{command}\n{line}"),
                (None, None) => anyhow::bail!("the block with {text:?} begins without a prompt"),
            }
        }
        Ok(commands)
    }

    /// Returns the one block of `sh` that contains `text`.
    ///
    /// # Errors
    /// Returns an error if no block or several contain it.
    pub fn block(&self, text: &str) -> Result<&str> {
        the_one(&self.blocks, text)
    }
}

fn the_one<'b>(blocks: &'b [String], text: &str) -> Result<&'b str> {
    let mut blocks = blocks.iter().filter(|block| block.contains(text));
    let block = blocks.next().with_context(|| format!("no {text:?}"))?;
    ensure!(blocks.next().is_none(), "{text:?} is in several blocks");
    Ok(block)
}
