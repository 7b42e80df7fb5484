//! HTTP/2 frame by frame, for clients that no library would be.

use super::http::Connection;

/// Kinds of frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags of frames.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of an error that ends a stream or the connection.
    pub fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a `GET` on host `a`, with more fields.
pub fn head(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    // By their places in the protocol's own table: `:method: GET`, `:scheme: http`, and the names of the other two.
    let mut block = vec![0x82, 0x86, 0x01];
    text(&mut block, "a");
    block.push(0x04);
    text(&mut block, path);
    for (name, value) in more {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// A string with its length, which is a number of seven bits or what follows them.
fn text(block: &mut Vec<u8>, text: &str) {
    match text.len().checked_sub(127) {
        None => block.push(text.len() as u8),
        Some(mut rest) => {
            block.push(127);
            while rest >= 128 {
                block.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            block.push(rest as u8);
        }
    }
    block.extend_from_slice(text.as_bytes());
}

/// A connection to a host that has begun to speak HTTP/2.
pub struct Frames {
    pub connection: Connection,
    taken: usize,
}

impl Frames {
    /// Connects with these settings.
    pub async fn to(url: &str, settings: &[(u16, u32)]) -> Self {
        let mut connection = Connection::to(url).await;
        connection.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let setting = |(name, value): &(u16, u32)| {
            [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()
        };
        let settings: Vec<u8> = settings.iter().flat_map(setting).collect();
        let mut frames = Self { connection, taken: 0 };
        frames.send(SETTINGS, 0, 0, &settings).await;
        frames
    }

    /// Sends a frame.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.connection.send(frame(kind, flags, stream, payload)).await;
    }

    /// Asks for a path, on a stream of this number.
    pub async fn get(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) {
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, &head(path, more)).await;
    }

    /// The next frame, unless the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            let bytes = &self.connection.bytes()[self.taken..];
            if let Some((head, rest)) = bytes.split_at_checked(9) {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if let Some(payload) = rest.get(..length) {
                    let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
                    let payload = payload.to_vec();
                    self.taken += 9 + length;
                    return Some(Frame { kind: head[3], flags: head[4], stream, payload });
                }
            }
            if self.connection.read(64 << 10).await == 0 {
                return None;
            }
        }
    }

    /// The next frame of a kind, past others. Pings and settings are acknowledged on the way.
    pub async fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("there is no frame {kind}"));
            if matches!(frame.kind, PING | SETTINGS) && frame.flags & ACK == 0 {
                let payload = if frame.kind == PING { &frame.payload[..] } else { &[] };
                self.send(frame.kind, ACK, 0, payload).await;
            }
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The error that the connection is ended with, if it says one.
    pub async fn end(mut self) -> Option<u32> {
        let mut error = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                error = Some(frame.error());
            }
        }
        error
    }
}
