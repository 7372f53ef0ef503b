//! Templates as trees.

use anyhow::bail;
use serde_json::Value;

/// A part of a template.
#[derive(Debug, Clone)]
pub enum Node {
    Text(String),
    Print(Expr),
    Declare(String, Expr),
    Range { key: Option<String>, item: Option<String>, of: Expr, body: Vec<Node>, or: Vec<Node> },
    If { condition: Expr, body: Vec<Node>, or: Vec<Node> },
    With { name: Option<String>, of: Expr, body: Vec<Node>, or: Vec<Node> },
}

/// Something with a value.
#[derive(Debug, Clone)]
pub enum Expr {
    Dot,
    Variable(String),
    Literal(Value),
    Field(Box<Expr>, Vec<String>),
    /// A field that is called, such as `.Label "a"`.
    Method(Box<Expr>, String, Vec<Expr>),
    Call(String, Vec<Expr>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// `.a.b`, or `.` alone.
    Fields(Vec<String>),
    Variable(String, Vec<String>),
    Literal(Value),
    Pipe,
    Open,
    /// A closing parenthesis with the fields behind it.
    Close(Vec<String>),
    Comma,
    Declare,
}

/// Functions that [`super::eval`] knows.
const FUNCTIONS: &[&str] = &[
    "json",
    "index",
    "len",
    "join",
    "split",
    "upper",
    "lower",
    "title",
    "println",
    "print",
    "printf",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "not",
    "and",
    "or",
    "slice",
    "truncate",
    "pad",
    "html",
    "js",
    "prettyjson",
];

/// What ended a list of nodes.
enum End {
    Text,
    Close,
    Else(Option<Vec<Token>>),
}

/// Parses a whole template.
pub fn template(text: &str) -> anyhow::Result<Vec<Node>> {
    let mut parser = Parser { rest: text, trim: false };
    match parser.nodes()? {
        (nodes, End::Text) => Ok(nodes),
        (_, End::Close) => bail!("--format: unexpected {{{{end}}}}"),
        (_, End::Else(_)) => bail!("--format: unexpected {{{{else}}}}"),
    }
}

struct Parser<'a> {
    rest: &'a str,
    /// The last action ended in a trim marker.
    trim: bool,
}

impl Parser<'_> {
    fn nodes(&mut self) -> anyhow::Result<(Vec<Node>, End)> {
        let mut nodes = Vec::new();
        loop {
            let Some(at) = self.rest.find("{{") else {
                push_text(&mut nodes, self.rest, self.trim, false);
                self.rest = "";
                return Ok((nodes, End::Text));
            };
            let (text, action) = self.rest.split_at(at);
            let Some(length) = close(action) else { bail!("--format: unclosed action") };
            let mut inner = &action[2..length];
            self.rest = &action[length + 2..];
            let trims_left = inner.starts_with("- ") || inner == "-";
            push_text(&mut nodes, text, self.trim, trims_left);
            if trims_left {
                inner = &inner[1..];
            }
            self.trim = inner.ends_with(" -");
            if self.trim {
                inner = &inner[..inner.len() - 1];
            }
            let inner = inner.trim();
            if inner.starts_with("/*") {
                continue;
            }
            let tokens = tokens(inner)?;
            let Some(Token::Word(word)) = tokens.first() else {
                nodes.push(print_or_declare(tokens)?);
                continue;
            };
            let rest = tokens[1..].to_vec();
            match word.as_str() {
                "end" => return Ok((nodes, End::Close)),
                "else" => {
                    let chained = match rest.first() {
                        None => None,
                        Some(Token::Word(word)) if word == "if" => Some(rest[1..].to_vec()),
                        Some(_) => bail!("--format: unexpected text after {{{{else}}}}"),
                    };
                    return Ok((nodes, End::Else(chained)));
                }
                "range" => nodes.push(self.range(rest)?),
                "if" => nodes.push(self.branch(rest)?),
                "with" => {
                    let (names, of) = declared(rest)?;
                    let (body, or) = self.body("with")?;
                    nodes.push(Node::With { name: names.into_iter().next(), of, body, or });
                }
                "define" | "template" | "block" | "break" | "continue" => {
                    bail!("--format: {{{{{word}}}}} is not supported")
                }
                _ => nodes.push(Node::Print(pipeline(&tokens)?)),
            }
        }
    }

    fn body(&mut self, of: &str) -> anyhow::Result<(Vec<Node>, Vec<Node>)> {
        let unclosed = || anyhow::anyhow!("--format: {{{{{of}}}}} without {{{{end}}}}");
        match self.nodes()? {
            (body, End::Close) => Ok((body, Vec::new())),
            (_, End::Text) => Err(unclosed()),
            (body, End::Else(None)) => match self.nodes()? {
                (or, End::Close) => Ok((body, or)),
                (_, End::Text) => Err(unclosed()),
                (_, End::Else(_)) => bail!("--format: unexpected {{{{else}}}}"),
            },
            (body, End::Else(Some(condition))) => Ok((body, vec![self.branch(condition)?])),
        }
    }

    fn branch(&mut self, condition: Vec<Token>) -> anyhow::Result<Node> {
        let condition = pipeline(&condition)?;
        let (body, or) = self.body("if")?;
        Ok(Node::If { condition, body, or })
    }

    fn range(&mut self, tokens: Vec<Token>) -> anyhow::Result<Node> {
        let (names, of) = declared(tokens)?;
        let (body, or) = self.body("range")?;
        let mut names = names.into_iter();
        let (key, item) = match (names.next(), names.next()) {
            (Some(item), None) => (None, Some(item)),
            (key, item) => (key, item),
        };
        Ok(Node::Range { key, item, of, body, or })
    }
}

/// Where an action closes; quotes hide braces.
fn close(action: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in action.char_indices().skip(2) {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if action[at..].starts_with("}}") => return Some(at),
            None => {}
        }
    }
    None
}

fn push_text(nodes: &mut Vec<Node>, text: &str, left: bool, right: bool) {
    // People write \t and \n in single quotes of a shell.
    let text = text.replace("\\t", "\t").replace("\\n", "\n");
    let text = if left { text.trim_start() } else { &text };
    let text = if right { text.trim_end() } else { text };
    if !text.is_empty() {
        nodes.push(Node::Text(text.to_owned()));
    }
}

fn print_or_declare(tokens: Vec<Token>) -> anyhow::Result<Node> {
    let declares = tokens.contains(&Token::Declare);
    if !declares {
        return Ok(Node::Print(pipeline(&tokens)?));
    }
    let (names, of) = declared(tokens)?;
    match <[String; 1]>::try_from(names) {
        Ok([name]) => Ok(Node::Declare(name, of)),
        Err(_) => bail!("--format: one variable is declared at a time"),
    }
}

/// `$a, $b := pipeline`.
fn declared(tokens: Vec<Token>) -> anyhow::Result<(Vec<String>, Expr)> {
    let Some(at) = tokens.iter().position(|token| *token == Token::Declare) else {
        return Ok((Vec::new(), pipeline(&tokens)?));
    };
    let mut names = Vec::new();
    for token in &tokens[..at] {
        match token {
            Token::Variable(name, fields) if fields.is_empty() => names.push(name.clone()),
            Token::Comma => {}
            _ => bail!("--format: only variables can be declared"),
        }
    }
    Ok((names, pipeline(&tokens[at + 1..])?))
}

fn pipeline(tokens: &[Token]) -> anyhow::Result<Expr> {
    let mut rest = tokens;
    let expr = piped(&mut rest)?;
    match rest {
        [] => Ok(expr),
        _ => bail!("--format: unexpected \")\""),
    }
}

fn piped(rest: &mut &[Token]) -> anyhow::Result<Expr> {
    let mut value = command(rest, None)?;
    while let Some((Token::Pipe, after)) = rest.split_first() {
        *rest = after;
        value = command(rest, Some(value))?;
    }
    Ok(value)
}

/// A function or method with its arguments, or one operand.
fn command(rest: &mut &[Token], piped_in: Option<Expr>) -> anyhow::Result<Expr> {
    let Some((first, after)) = rest.split_first() else { bail!("--format: missing value") };
    if let Token::Word(name) = first {
        if !FUNCTIONS.contains(&name.as_str()) {
            bail!("--format: function \"{name}\" is not defined");
        }
        *rest = after;
        let mut arguments = Vec::new();
        while let Some(argument) = operand(rest)? {
            arguments.push(argument);
        }
        arguments.extend(piped_in);
        return Ok(Expr::Call(name.clone(), arguments));
    }
    let Some(value) = operand(rest)? else { bail!("--format: missing value") };
    let mut arguments = Vec::new();
    while let Some(argument) = operand(rest)? {
        arguments.push(argument);
    }
    arguments.extend(piped_in);
    match value {
        value if arguments.is_empty() => Ok(value),
        Expr::Field(of, mut names) => {
            let name = names.pop().expect("a field has a name");
            let of = if names.is_empty() { of } else { Box::new(Expr::Field(of, names)) };
            Ok(Expr::Method(of, name, arguments))
        }
        _ => bail!("--format: only functions and methods take arguments"),
    }
}

fn operand(rest: &mut &[Token]) -> anyhow::Result<Option<Expr>> {
    let Some((first, after)) = rest.split_first() else { return Ok(None) };
    let field = |of: Expr, fields: &[String]| match fields {
        [] => of,
        fields => Expr::Field(Box::new(of), fields.to_vec()),
    };
    let value = match first {
        Token::Fields(fields) => field(Expr::Dot, fields),
        Token::Variable(name, fields) => field(Expr::Variable(name.clone()), fields),
        Token::Literal(value) => Expr::Literal(value.clone()),
        Token::Word(name) if FUNCTIONS.contains(&name.as_str()) => {
            Expr::Call(name.clone(), Vec::new())
        }
        Token::Word(name) => bail!("--format: function \"{name}\" is not defined"),
        Token::Open => {
            *rest = after;
            let inner = piped(rest)?;
            let Some((Token::Close(fields), after)) = rest.split_first() else {
                bail!("--format: unclosed \"(\"");
            };
            *rest = after;
            return Ok(Some(field(inner, fields)));
        }
        Token::Pipe | Token::Close(_) | Token::Comma | Token::Declare => return Ok(None),
    };
    *rest = after;
    Ok(Some(value))
}

fn tokens(text: &str) -> anyhow::Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match c {
            c if c.is_whitespace() => rest = &rest[c.len_utf8()..],
            '|' => single(&mut rest, &mut tokens, Token::Pipe),
            '(' => single(&mut rest, &mut tokens, Token::Open),
            ',' => single(&mut rest, &mut tokens, Token::Comma),
            ')' => {
                rest = &rest[1..];
                let fields = if rest.starts_with('.') { fields(&mut rest)? } else { Vec::new() };
                tokens.push(Token::Close(fields));
            }
            ':' if rest.starts_with(":=") => {
                rest = &rest[2..];
                tokens.push(Token::Declare);
            }
            '.' => {
                let fields = fields(&mut rest)?;
                tokens.push(Token::Fields(fields));
            }
            '$' => {
                rest = &rest[1..];
                let name = word(&mut rest).to_owned();
                let fields = if rest.starts_with('.') { fields(&mut rest)? } else { Vec::new() };
                tokens.push(Token::Variable(name, fields));
            }
            '"' => {
                let end = string_end(rest)?;
                // Go's and JSON's escapes agree on all that people use.
                let value: String = serde_json::from_str(&rest[..end])
                    .map_err(|_| anyhow::anyhow!("--format: bad string {}", &rest[..end]))?;
                tokens.push(Token::Literal(value.into()));
                rest = &rest[end..];
            }
            '`' => {
                let Some(end) = rest[1..].find('`') else {
                    bail!("--format: unterminated raw string")
                };
                tokens.push(Token::Literal(rest[1..=end].into()));
                rest = &rest[end + 2..];
            }
            c if c.is_ascii_digit() || c == '-' => {
                let number = |c: char| c.is_ascii_digit() || c == '.' || c == '-';
                let end = rest.find(|c| !number(c)).unwrap_or(rest.len());
                let value: Value = serde_json::from_str(&rest[..end])
                    .map_err(|_| anyhow::anyhow!("--format: bad number {}", &rest[..end]))?;
                tokens.push(Token::Literal(value));
                rest = &rest[end..];
            }
            c if c.is_alphabetic() || c == '_' => {
                let word = word(&mut rest);
                tokens.push(match word {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                });
            }
            c => bail!("--format: unexpected {c:?} in {text:?}"),
        }
    }
    Ok(tokens)
}

fn single(rest: &mut &str, tokens: &mut Vec<Token>, token: Token) {
    *rest = &rest[1..];
    tokens.push(token);
}

fn string_end(text: &str) -> anyhow::Result<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Ok(at + 1),
            _ => {}
        }
    }
    bail!("--format: unterminated string")
}

fn word<'a>(rest: &mut &'a str) -> &'a str {
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    word
}

/// `.a.b`; a dot alone has no fields.
fn fields(rest: &mut &str) -> anyhow::Result<Vec<String>> {
    let mut fields = Vec::new();
    while let Some(after) = rest.strip_prefix('.') {
        *rest = after;
        let name = word(rest);
        if name.is_empty() {
            if fields.is_empty() && !rest.starts_with('.') {
                return Ok(fields);
            }
            bail!("--format: a field has no name");
        }
        fields.push(name.to_owned());
    }
    Ok(fields)
}
