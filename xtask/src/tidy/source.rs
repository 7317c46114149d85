//! Rust source told apart into code and comments, line by line, without a parser: the rules look at words only.

/// A file, twice: once with comments and literals blanked, once with everything but comments blanked. Both keep
/// every line break, so that line numbers hold.
#[derive(Debug)]
pub struct Source {
    pub code: String,
    pub comments: String,
}

#[derive(Clone, Copy)]
enum State {
    Code,
    LineComment,
    BlockComment { depth: u32 },
    Text,
    RawText { hashes: usize },
}

impl Source {
    pub fn new(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let mut code = String::with_capacity(text.len());
        let mut comments = String::with_capacity(text.len());
        let mut state = State::Code;
        let mut at = 0;
        while at < chars.len() {
            // How many characters the step takes, and what they are.
            let (taken, kind, next) = step(&chars, at, state);
            for &c in &chars[at..(at + taken).min(chars.len())] {
                let blank = if c == '\n' { '\n' } else { ' ' };
                code.push(if kind == Kind::Code { c } else { blank });
                comments.push(if kind == Kind::Comment { c } else { blank });
            }
            at += taken;
            state = next;
        }
        Self { code, comments }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

fn step(chars: &[char], at: usize, state: State) -> (usize, Kind, State) {
    let c = chars[at];
    let next = chars.get(at + 1).copied();
    match state {
        State::Code => match (c, next) {
            ('/', Some('/')) => (2, Kind::Comment, State::LineComment),
            ('/', Some('*')) => (2, Kind::Comment, State::BlockComment { depth: 1 }),
            ('"', _) => (1, Kind::Literal, State::Text),
            ('r', Some('"' | '#')) if !continues_word(chars, at) => match raw_start(chars, at) {
                Some((taken, hashes)) => (taken, Kind::Literal, State::RawText { hashes }),
                None => (1, Kind::Code, State::Code),
            },
            ('\'', _) => match char_literal(chars, at) {
                Some(taken) => (taken, Kind::Literal, State::Code),
                None => (1, Kind::Code, State::Code),
            },
            _ => (1, Kind::Code, State::Code),
        },
        State::LineComment if c == '\n' => (1, Kind::Code, State::Code),
        State::LineComment => (1, Kind::Comment, state),
        State::BlockComment { depth } => match (c, next) {
            ('/', Some('*')) => (2, Kind::Comment, State::BlockComment { depth: depth + 1 }),
            ('*', Some('/')) if depth == 1 => (2, Kind::Comment, State::Code),
            ('*', Some('/')) => (2, Kind::Comment, State::BlockComment { depth: depth - 1 }),
            _ => (1, Kind::Comment, state),
        },
        State::Text => match c {
            '\\' => (2, Kind::Literal, state),
            '"' => (1, Kind::Literal, State::Code),
            _ => (1, Kind::Literal, state),
        },
        State::RawText { hashes } => {
            let closes = c == '"' && (1..=hashes).all(|n| chars.get(at + n) == Some(&'#'));
            if closes { (1 + hashes, Kind::Literal, State::Code) } else { (1, Kind::Literal, state) }
        }
    }
}

/// Whether the character at `at` is inside an identifier: the `r` of `for"…"` starts nothing, that of `br"…"` does.
fn continues_word(chars: &[char], at: usize) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let Some(before) = at.checked_sub(1).map(|i| chars[i]) else { return false };
    let alone = |prefix: char| before == prefix && (at < 2 || !is_word(chars[at - 2]));
    is_word(before) && !alone('b') && !alone('c')
}

fn raw_start(chars: &[char], at: usize) -> Option<(usize, usize)> {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some((hashes + 2, hashes))
}

/// The length of a character literal; none if the quote begins a lifetime.
fn char_literal(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at + 1) == Some(&'\\') {
        // Past the escaped character, which may be a quote itself.
        let end = chars.get(at + 3..)?.iter().take(10).position(|c| *c == '\'')?;
        return Some(end + 4);
    }
    (chars.get(at + 2) == Some(&'\'')).then_some(3)
}

/// The words of a text with the byte offset of each: identifiers and keywords.
pub fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + text[rest..].find(is_word)?;
        let length = text[start..].find(|c| !is_word(c)).unwrap_or(text.len() - start);
        rest = start + length;
        Some((start, &text[start..rest]))
    })
}

/// The line, from 1, of a byte offset.
pub fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new(text).code
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        assert_eq!(code("a // unsafe\nb"), "a          \nb");
        assert_eq!(code("a /* x /* y */ z */ b"), "a                   b");
        assert_eq!(code(r#"f("a \" // b") g"#), "f(           ) g");
        assert_eq!(code("f(r#\"a \" b\"#) g"), "f(          ) g");
        assert_eq!(code("br\"x\" for"), "b     for");
    }

    #[test]
    fn quotes_of_characters_and_lifetimes_are_told_apart() {
        assert_eq!(code("'\"' x"), "    x");
        assert_eq!(code(r"'\'' x"), "     x");
        assert_eq!(code(r"'\u{1f600}' x"), "            x");
        assert_eq!(code("fn f<'a>(x: &'a str)"), "fn f<'a>(x: &'a str)");
        assert_eq!(code("r#type: u8"), "r#type: u8");
    }

    #[test]
    fn comments_keep_their_lines() {
        let source = Source::new("a\n// one\n/* two\nthree */ b");
        assert_eq!(source.comments, " \n// one\n/* two\nthree */  ");
    }

    #[test]
    fn words_come_with_their_place() {
        assert_eq!(words("a::b_c é{}").collect::<Vec<_>>(), [(0, "a"), (3, "b_c"), (7, "é")]);
        assert_eq!(line_of("a\nb\nc", 4), 3);
    }
}
