//! The fenced blocks of a Markdown text. Only three backticks at the start of a line are recognized.

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CodeBlock {
    /// The info string: `sh`, `toml`, …
    pub(super) language: String,
    pub(super) text: String,
    /// The line where it starts.
    pub(super) at_line: usize,
}

const FENCE: &str = "```";

/// All blocks. Panics on an unclosed block.
pub(super) fn blocks(text: &str) -> Vec<CodeBlock> {
    let mut blocks = Vec::new();
    let mut open: Option<CodeBlock> = None;
    for (index, line) in text.lines().enumerate() {
        match (line.trim_start().strip_prefix(FENCE), &mut open) {
            (Some(word), None) => {
                open = Some(CodeBlock { language: word.trim().to_owned(), text: String::new(), at_line: index + 1 });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => (),
        }
    }
    assert!(open.is_none(), "a block is not closed: {open:?}");
    blocks
}

impl CodeBlock {
    /// The commands, without comments and prompts, with continued lines joined.
    pub(super) fn lines(&self) -> Vec<String> {
        let joined = self.text.replace("\\\n", " ");
        let lines = joined.lines().map(|line| line.trim().trim_start_matches("$ "));
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
    }
}

#[test]
fn blocks_are_found_with_their_words_and_lines() {
    let text = "# Title\n```sh\n# a comment\n$ trunkline status \\\n  --json\n\n./test\n```\ntext\n```\n──▶\n```\n";
    let found = blocks(text);
    assert_eq!(
        found.iter().map(|block| (block.language.as_str(), block.at_line)).collect::<Vec<_>>(),
        [("sh", 2), ("", 10)]
    );
    assert_eq!(found[0].lines(), ["trunkline status    --json", "./test"]);
}

#[test]
#[should_panic(expected = "not closed")]
fn a_block_without_an_end_is_a_mistake() {
    blocks("```sh\ntrunkline status\n");
}
