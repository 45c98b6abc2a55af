//! The grammar of label selector strings, with the error texts of `labels.Parse`.

use super::labels::{Operator, Requirement};
use crate::field::{Error, Path};
use crate::names;

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Error,
    End,
    ClosedParen,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    OpenParen,
}

fn token(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::ClosedParen,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "in" => Token::In,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "notin" => Token::NotIn,
        "(" => Token::OpenParen,
        _ => return None,
    })
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

/// Splits the text into tokens; the longest known symbol wins.
fn scan(text: &str) -> Vec<(Token, String)> {
    let mut items = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(is_space);
        let Some(first) = rest.chars().next() else { break };
        if is_special(first) {
            let run = rest.find(|c| !is_special(c)).unwrap_or(rest.len());
            let longest = (1..=run.min(2)).rev().find_map(|n| token(&rest[..n]).map(|t| (t, n)));
            let (found, length) = longest.unwrap_or((Token::Error, run));
            items.push((found, rest[..length].to_owned()));
            rest = &rest[length..];
        } else {
            let length = rest.find(|c| is_special(c) || is_space(c)).unwrap_or(rest.len());
            let word = &rest[..length];
            items.push((token(word).unwrap_or(Token::Identifier), word.to_owned()));
            rest = &rest[length..];
        }
    }
    items.push((Token::End, String::new()));
    items
}

struct Parser {
    items: Vec<(Token, String)>,
    at: usize,
}

/// Parses a selector string into requirements, in the order written.
pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, String> {
    let mut parser = Parser { items: scan(text), at: 0 };
    let mut requirements = Vec::new();
    loop {
        let (tok, literal) = parser.look(true);
        match tok {
            Token::Identifier | Token::Not => {
                let requirement =
                    parser.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                requirements.push(requirement);
                let (tok, literal) = parser.take(true);
                match tok {
                    Token::End => return Ok(requirements),
                    Token::Comma => {
                        let (next, literal) = parser.look(true);
                        if !matches!(next, Token::Identifier | Token::Not) {
                            return Err(format!("found '{literal}', expected: identifier after ','"));
                        }
                    }
                    _ => return Err(format!("found '{literal}', expected: ',' or 'end of string'")),
                }
            }
            Token::End => return Ok(requirements),
            _ => return Err(format!("found '{literal}', expected: !, identifier, or 'end of string'")),
        }
    }
}

impl Parser {
    /// Returns the next token without consuming it; where values are expected, `in` and `notin` are plain
    /// identifiers.
    fn look(&self, values: bool) -> (Token, String) {
        let (tok, literal) = self.items.get(self.at).cloned().unwrap_or((Token::End, String::new()));
        match tok {
            Token::In | Token::NotIn if values => (Token::Identifier, literal),
            _ => (tok, literal),
        }
    }

    fn take(&mut self, values: bool) -> (Token, String) {
        let item = self.look(values);
        self.at += 1;
        item
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (key, unary) = self.key()?;
        if let Some(operator) = unary {
            return make(&key, operator, Vec::new());
        }
        let operator = self.operator()?;
        let mut values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        values.sort_unstable();
        values.dedup();
        make(&key, operator, values)
    }

    /// Reads a key; also returns the operator if none follows: `key` or `!key`.
    fn key(&mut self) -> Result<(String, Option<Operator>), String> {
        let mut unary = None;
        let (mut tok, mut literal) = self.take(true);
        if tok == Token::Not {
            unary = Some(Operator::DoesNotExist);
            (tok, literal) = self.take(true);
        }
        if tok != Token::Identifier {
            return Err(format!("found '{literal}', expected: identifier"));
        }
        let complaints = names::qualified_name(&literal);
        if !complaints.is_empty() {
            return Err(Error::invalid(&Path::nil(), literal, complaints.join("; ")).to_string());
        }
        if unary.is_none() && matches!(self.look(true).0, Token::End | Token::Comma) {
            unary = Some(Operator::Exists);
        }
        Ok((literal, unary))
    }

    fn operator(&mut self) -> Result<Operator, String> {
        let (tok, literal) = self.take(false);
        Ok(match tok {
            Token::In => Operator::In,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            Token::NotIn => Operator::NotIn,
            Token::NotEquals => Operator::NotEquals,
            _ => return Err(format!("found '{literal}', expected: {OPERATORS}")),
        })
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let (tok, literal) = self.take(true);
        if tok != Token::OpenParen {
            return Err(format!("found '{literal}' expected: '('"));
        }
        let (tok, literal) = self.look(true);
        match tok {
            Token::Identifier | Token::Comma => {
                let values = self.identifiers()?;
                let (tok, literal) = self.take(true);
                if tok != Token::ClosedParen {
                    return Err(format!("found '{literal}', expected: ')'"));
                }
                Ok(values)
            }
            Token::ClosedParen => {
                self.at += 1;
                Ok(vec![String::new()])
            }
            _ => Err(format!("found '{literal}', expected: ',', ')' or identifier")),
        }
    }

    /// Reads a comma-separated list of values; an empty position is the empty value.
    fn identifiers(&mut self) -> Result<Vec<String>, String> {
        let mut values: Vec<String> = Vec::new();
        loop {
            let (tok, literal) = self.take(true);
            match tok {
                Token::Identifier => {
                    values.push(literal);
                    match self.look(true) {
                        (Token::Comma, _) => {}
                        (Token::ClosedParen, _) => return Ok(values),
                        (_, literal) => return Err(format!("found '{literal}', expected: ',' or ')'")),
                    }
                }
                Token::Comma => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.look(true).0 {
                        Token::ClosedParen => {
                            values.push(String::new());
                            return Ok(values);
                        }
                        Token::Comma => values.push(String::new()),
                        _ => {}
                    }
                }
                _ => return Err(format!("found '{literal}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.look(true).0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.take(true) {
            (Token::Identifier, literal) => Ok(literal),
            (_, literal) => Err(format!("found '{literal}', expected: identifier")),
        }
    }
}

fn make(key: &str, operator: Operator, values: Vec<String>) -> Result<Requirement, String> {
    Requirement::new(key, operator, values, &Path::nil()).map_err(|e| e.message())
}

#[cfg(test)]
mod tests {
    use super::super::Selector;
    use serde_json::json;

    fn error(text: &str) -> String {
        Selector::parse(text).err().unwrap_or_default()
    }

    #[test]
    fn selectors_print_sorted_and_match() {
        let selector = Selector::parse("b in (y,x), a=1,!c,d").expect("parses");
        assert_eq!(selector.to_string(), "a=1,b in (x,y),!c,d");
        assert!(selector.matches(&json!({"a": "1", "b": "x", "d": ""})));
        assert!(!selector.matches(&json!({"a": "1", "b": "x", "d": "", "c": "1"})));
        assert!(Selector::parse("").expect("parses").is_empty());
        assert!(Selector::parse("a notin (b)").expect("parses").matches(&json!({})));
        assert!(Selector::parse("a>5").expect("parses").matches(&json!({"a": "6"})));
    }

    #[test]
    fn errors_read_as_those_of_kubernetes() {
        assert_eq!(error("!!"), "unable to parse requirement: found '!', expected: identifier");
        assert_eq!(error("a=b=c"), "found '=', expected: ',' or 'end of string'");
        assert_eq!(error("a in b"), "unable to parse requirement: found 'b' expected: '('");
        assert_eq!(error("a,"), "found '', expected: identifier after ','");
        assert!(
            error("a b")
                .starts_with("unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt")
        );
        assert!(
            error("a=-")
                .starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid")
        );
    }
}
