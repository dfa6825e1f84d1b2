//! A command as an administrator writes it, and the words that it is made of. There is no shell in between.
//!
//! Words are parted by white space. Inside single quotes everything is taken as it stands; inside double quotes, and without
//! any, `$NAME` and `${NAME}` stand for variables, which are put in after the parting: whatever is in them, they never make
//! another word. Everything else stands for itself, a backslash too. Whoever wants more writes `sh -c '...'`.

use std::fmt;

/// Longest command, in bytes.
const MAX_BYTES: usize = 8 * 1024;

/// A command that parsed: at least one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    text: String,
    program: Word,
    arguments: Vec<Word>,
}

/// The parts of a word, in order.
type Word = Vec<Part>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(String),
}

impl CommandLine {
    /// Parses a command; none if there is nothing in it.
    ///
    /// # Errors
    /// What makes no sense, in words.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("it has {} bytes, more than {MAX_BYTES}", text.len()));
        }
        if text.contains('\0') {
            return Err("it has a NUL in it".into());
        }
        let mut words = split(text)?.into_iter();
        let Some(program) = words.next() else { return Ok(None) };
        Ok(Some(CommandLine { text: text.to_owned(), program, arguments: words.collect() }))
    }

    /// Program and arguments, with `variable` asked for what variables hold; nothing if it knows none of the name.
    pub(super) fn expand(&self, variable: impl Fn(&str) -> Option<String>) -> (String, Vec<String>) {
        let expand = |word: &Word| -> String {
            let part = |part: &Part| match part {
                Part::Text(text) => text.clone(),
                Part::Variable(name) => variable(name).unwrap_or_default(),
            };
            word.iter().map(part).collect()
        };
        (expand(&self.program), self.arguments.iter().map(expand).collect())
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

/// Where in a text one is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    None,
    Single,
    Double,
}

fn split(text: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    // None between two words; an empty one is begun by quotes with nothing in them.
    let mut word: Option<Word> = None;
    let mut quotes = Quotes::None;
    let mut bare = String::new();
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        match (quotes, letter) {
            (Quotes::None, ' ' | '\t' | '\n' | '\r') => {
                refuse_shell(&std::mem::take(&mut bare))?;
                words.extend(word.take());
                continue;
            }
            (Quotes::None, '\'') => quotes = Quotes::Single,
            (Quotes::None, '"') => quotes = Quotes::Double,
            (Quotes::Single, '\'') | (Quotes::Double, '"') => quotes = Quotes::None,
            (Quotes::None | Quotes::Double, '$') => {
                let part = variable(&mut rest)?;
                word.get_or_insert_default().push(part);
                continue;
            }
            (_, letter) => {
                if quotes == Quotes::None {
                    bare.push(letter);
                }
                let word = word.get_or_insert_default();
                match word.last_mut() {
                    Some(Part::Text(text)) => text.push(letter),
                    _ => word.push(Part::Text(letter.into())),
                }
                continue;
            }
        }
        word.get_or_insert_default();
    }
    refuse_shell(&bare)?;
    words.extend(word);
    if quotes == Quotes::None { Ok(words) } else { Err("a quotation mark is not closed".into()) }
}

/// What follows a dollar sign.
fn variable(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Part, String> {
    let braces = rest.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(letter) = rest.next_if(|letter| letter.is_ascii_alphanumeric() || *letter == '_') {
        name.push(letter);
    }
    if braces && (name.is_empty() || rest.next_if_eq(&'}').is_none()) {
        return Err("after ${ there must be a name and }: more than that takes a shell, sh -c '...'".into());
    }
    if name.is_empty() && rest.peek() == Some(&'(') {
        return Err("$(...) is for a shell, and none is run: write sh -c '...'".into());
    }
    Ok(if name.is_empty() { Part::Text("$".into()) } else { Part::Variable(name) })
}

/// A program would get these as arguments, which nobody means.
fn refuse_shell(bare: &str) -> Result<(), String> {
    match bare {
        "&&" | "||" | "|" | ";" | "&" | ">" | ">>" | "<" | "2>&1" => {
            Err(format!("{bare} is for a shell, and none is run: write sh -c '...'"))
        }
        _ if bare.len() > 1 && bare.ends_with(';') => {
            Err(format!("the semicolon of {bare:?} is for a shell, and none is run: write sh -c '...'"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        let variable = |name: &str| match name {
            "SUBNET" => Some("10.5.2.0/24".into()),
            "EVIL" => Some("a b; rm -rf '$SUBNET'".into()),
            _ => None,
        };
        let (program, arguments) = CommandLine::parse(text).unwrap().unwrap().expand(variable);
        [program].into_iter().chain(arguments).collect()
    }

    #[test]
    fn words_are_parted_and_variables_put_in_afterwards() {
        for (text, wanted) in [
            ("ip route replace $SUBNET dev  eth0", &["ip", "route", "replace", "10.5.2.0/24", "dev", "eth0"][..]),
            ("\tip \n a", &["ip", "a"]),
            ("ip \"$SUBNET\" ${SUBNET}x '$SUBNET'", &["ip", "10.5.2.0/24", "10.5.2.0/24x", "$SUBNET"]),
            (
                "sh -c 'ip route add $SUBNET && echo \"done\"; true'",
                &["sh", "-c", "ip route add $SUBNET && echo \"done\"; true"],
            ),
            ("a '' \"\" b", &["a", "", "", "b"]),
            ("a$EVIL \"$EVIL\"", &["aa b; rm -rf '$SUBNET'", "a b; rm -rf '$SUBNET'"]),
            ("a $ $1x $UNKNOWN. a'b'\"c\"d C:\\dir", &["a", "$", "", ".", "abcd", "C:\\dir"]),
            ("'a b'/c", &["a b/c"]),
        ] {
            assert_eq!(words(text), wanted, "{text}");
        }
        assert_eq!(CommandLine::parse(" \t ").unwrap(), None);
    }

    #[test]
    fn what_only_a_shell_understands_is_refused_with_the_remedy() {
        for text in ["a && b", "export A=1; b", "a | b", "a > /dev/null", "a ${B:-c}", "a ${", "a $(b)", "a \"$(b)\""] {
            let error = CommandLine::parse(text).unwrap_err();
            assert!(error.contains("sh -c"), "{text}: {error}");
        }
        for text in ["a 'b", "a \"b", "a\0"] {
            assert!(CommandLine::parse(text).is_err(), "{text}");
        }
        assert!(CommandLine::parse(&"a ".repeat(5000)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_and_no_variable_makes_it_panic_or_adds_words(text in "[a$'\"{} \\\\;&B]{0,40}", value in ".{0,20}") {
            if let Ok(Some(command)) = CommandLine::parse(&text) {
                let (_, with) = command.expand(|_| Some(value.clone()));
                let (_, without) = command.expand(|_| None);
                prop_assert_eq!(with.len(), without.len());
            }
        }
    }
}
