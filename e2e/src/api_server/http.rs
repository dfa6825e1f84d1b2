//! HTTP/1.1 (RFC 9112), as much of it as API clients use.

use super::watch::Watch;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Longest body that is read.
const MAX_BODY: usize = 4 << 20;

/// What a client wants.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn parameter(&self, name: &str) -> &str {
        self.query.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.parameter(name), "true" | "1")
    }

    pub(super) fn json(&self) -> Result<Value, Reply> {
        serde_json::from_str(&self.body).map_err(|error| Reply::error(400, "BadRequest", &error.to_string()))
    }
}

/// What it gets.
#[derive(Debug)]
pub(super) enum Reply {
    /// an object
    Json(u16, Value),
    /// an object, and when to come again, in seconds
    Later(u16, Value, u64),
    /// text, as the server's own throttling answers
    Text(u16, &'static str, u64),
    /// events for as long as it listens
    Watch(Watch),
}

impl Reply {
    pub(super) fn error(code: u16, reason: &str, message: &str) -> Self {
        Reply::Json(code, status(code, reason, message))
    }

    pub(super) fn missing(kind: &str, name: &str) -> Self {
        Self::error(404, "NotFound", &format!("{kind} \"{name}\" not found"))
    }
}

/// A Status object.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason,
           "code": code})
}

/// The server's end of a connection.
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        Ok(Self { writer: stream.try_clone()?, reader: BufReader::new(stream) })
    }

    /// The next request. None: the client has gone.
    pub(super) fn request(&mut self) -> io::Result<Option<Request>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(String::from);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut request = Request {
            method,
            path: decoded(path),
            query: query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (decoded(name), decoded(value)))
                .collect(),
            ..Request::default()
        };
        loop {
            let mut header = String::new();
            self.reader.read_line(&mut header)?;
            match header.trim_end().split_once(':') {
                Some((name, value)) => request.headers.push((name.to_ascii_lowercase(), value.trim().into())),
                None => break,
            }
        }
        let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if length > MAX_BODY {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        request.body = String::from_utf8_lossy(&body).into_owned();
        Ok(Some(request))
    }

    pub(super) fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        let (code, kind, body, later) = match reply {
            Reply::Json(code, object) => (*code, "application/json", object.to_string(), None),
            Reply::Later(code, object, later) => (*code, "application/json", object.to_string(), Some(later)),
            Reply::Text(code, text, later) => (*code, "text/plain", (*text).to_owned(), Some(later)),
            Reply::Watch(_) => return Ok(()),
        };
        let later = later.map(|later| format!("Retry-After: {later}\r\n")).unwrap_or_default();
        let head =
            format!("HTTP/1.1 {code} Answer\r\nContent-Type: {kind}\r\n{later}Content-Length: {}\r\n\r\n", body.len());
        self.writer.write_all((head + &body).as_bytes())
    }

    /// Begins an answer whose length is not known.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.writer
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    }

    /// A part of it; an empty one is its end.
    pub(super) fn part(&mut self, text: &str) -> io::Result<()> {
        self.writer.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
    }

    pub(super) fn close(&self) {
        // It may be closed already.
        let _ = self.writer.shutdown(Shutdown::Both);
    }
}

/// Percent-decoding (RFC 3986), with a plus for a space as in queries.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
