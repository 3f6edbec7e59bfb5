//! Follows what comes in beneath the WebSocket library: which message is under way, and which of them were text.
//!
//! The library keeps to itself that a message in parts has begun, and throws away a text that is not UTF-8. So a text
//! is handed to it as binary, which it takes unread, and whoever takes the message asks here what it was. Headers are
//! read by the library's own reader, and what breaks the protocol is left to the library to refuse.

use std::{collections::VecDeque, io::Cursor};

use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

/// The longest header of RFC 6455 section 5.2.
const HEADER_LEN_MAX: usize = 14;
/// Where the first byte of a header has its opcode.
const OPCODE_BITS: u8 = 0x0f;

/// Follows one connection from its first frame on. Messages are counted from 0.
#[derive(Debug)]
pub(super) struct Follower {
    place: Place,
    messages: u64,
    under_way: Option<u64>,
    /// Which messages came as binary and were not asked for yet: no more than one read can hold, as the library reads
    /// only when it has no whole frame left.
    binaries: VecDeque<u64>,
}

/// What the next byte belongs to.
#[derive(Debug)]
enum Place {
    Header {
        read: [u8; HEADER_LEN_MAX],
        len: usize,
    },
    /// `ends` says whether the message ends with it.
    Payload {
        left: u64,
        ends: bool,
    },
    /// This is no WebSocket; the library will say so.
    Lost,
}

impl Follower {
    pub(super) fn new() -> Self {
        Self { place: Place::header(), messages: 0, under_way: None, binaries: VecDeque::new() }
    }

    /// The message that has begun and is not whole.
    pub(super) fn under_way(&self) -> Option<u64> {
        self.under_way
    }

    /// Whether this message came as text. They are asked for in their order.
    pub(super) fn was_text(&mut self, message: u64) -> bool {
        self.binaries.pop_front_if(|binary| *binary == message).is_none()
    }

    /// Follows the bytes that were read, and makes binary messages of texts.
    pub(super) fn follow(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&mut bytes[at..]);
        }
    }

    /// Takes as many bytes as belong together. There is one at least.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        match &mut self.place {
            Place::Header { read, len } => {
                read[*len] = bytes[0];
                *len += 1;
                if *len == 1 {
                    bytes[0] = as_binary(bytes[0]);
                }
                match FrameHeader::parse(&mut Cursor::new(&read[..*len])) {
                    Ok(Some((header, left))) => self.enter(&header, left),
                    Ok(None) if *len < HEADER_LEN_MAX => (),
                    Ok(None) | Err(_) => self.place = Place::Lost,
                }
                1
            }
            Place::Payload { left, ends } => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                let (left, ends) = (*left - taken as u64, *ends);
                self.payload(left, ends);
                taken
            }
            Place::Lost => bytes.len(),
        }
    }

    /// Behind a header.
    fn enter(&mut self, header: &FrameHeader, left: u64) {
        match header.opcode {
            OpCode::Control(_) => return self.payload(left, false),
            OpCode::Data(Data::Continue) => (),
            OpCode::Data(Data::Text | Data::Reserved(_)) => self.begin(),
            OpCode::Data(Data::Binary) => {
                self.binaries.push_back(self.messages);
                self.begin();
            }
        }
        self.payload(left, header.is_final);
    }

    fn begin(&mut self) {
        self.under_way = Some(self.messages);
        self.messages += 1;
    }

    fn payload(&mut self, left: u64, ends: bool) {
        if left > 0 {
            self.place = Place::Payload { left, ends };
            return;
        }
        self.place = Place::header();
        if ends {
            self.under_way = None;
        }
    }
}

impl Place {
    fn header() -> Self {
        Self::Header { read: [0; HEADER_LEN_MAX], len: 0 }
    }
}

/// The first byte of a header, with a text become binary.
fn as_binary(first: u8) -> u8 {
    match OpCode::from(first & OPCODE_BITS) {
        OpCode::Data(Data::Text) => (first & !OPCODE_BITS) | u8::from(OpCode::Data(Data::Binary)),
        OpCode::Data(Data::Continue | Data::Binary | Data::Reserved(_)) | OpCode::Control(_) => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u8 = 0x81;
    const BINARY: u8 = 0x82;
    const PING: u8 = 0x89;

    /// Follows the bytes in reads of this length; what the library is handed, and what was under way after each read.
    fn followed(follower: &mut Follower, bytes: &[u8], read: usize) -> (Vec<u8>, Vec<Option<u64>>) {
        let mut handed = bytes.to_vec();
        let mut under_way = Vec::new();
        for read in handed.chunks_mut(read) {
            follower.follow(read);
            under_way.push(follower.under_way());
        }
        (handed, under_way)
    }

    fn frame(first: u8, len: usize) -> Vec<u8> {
        let len = match u16::try_from(len) {
            Ok(short @ 0..=125) => vec![u8::try_from(short).unwrap()],
            Ok(long) => [&[126], &long.to_be_bytes()[..]].concat(),
            Err(_) => [&[127], &(len as u64).to_be_bytes()[..]].concat(),
        };
        [&[first], &len[..]].concat()
    }

    fn whole(first: u8, payload: &[u8]) -> Vec<u8> {
        [frame(first, payload.len()), payload.to_vec()].concat()
    }

    #[test]
    fn texts_become_binary_and_are_remembered_however_they_are_read() {
        let long = vec![TEXT; 70_000];
        let come = [
            whole(TEXT, b"\x81one"),
            whole(PING, b"\x81"),
            whole(BINARY, b"two"),
            whole(TEXT, b""),
            whole(TEXT, &long),
            // Text in three parts with a ping between them.
            whole(0x01, b"fo"),
            whole(PING, b""),
            whole(0x00, b""),
            whole(0x80, &long[..300]),
            whole(BINARY, b""),
        ];
        let handed = [
            whole(BINARY, b"\x81one"),
            whole(PING, b"\x81"),
            whole(BINARY, b"two"),
            whole(BINARY, b""),
            whole(BINARY, &long),
            whole(0x02, b"fo"),
            whole(PING, b""),
            whole(0x00, b""),
            whole(0x80, &long[..300]),
            whole(BINARY, b""),
        ];
        for read in [1, 2, 3, 7, 64, 1_000, 100_000] {
            let mut follower = Follower::new();
            assert!(followed(&mut follower, &come.concat(), read).0 == handed.concat(), "in reads of {read}");
            assert_eq!(follower.under_way(), None);
            let texts: Vec<bool> = (0..6).map(|message| follower.was_text(message)).collect();
            assert_eq!(texts, [true, false, true, true, true, false]);
        }
    }

    #[test]
    fn a_message_is_under_way_until_its_last_part_is_whole() {
        let mut follower = Follower::new();
        let come = [whole(0x01, b"a"), whole(PING, b"b"), whole(0x80, b"c"), whole(PING, b"d")].concat();
        let (_, under_way) = followed(&mut follower, &come, 1);
        let during = [vec![None], vec![Some(0); 7], vec![None; 4]].concat();
        assert_eq!(under_way, during);
    }

    #[test]
    fn what_is_no_frame_is_left_as_it_is() {
        let mut follower = Follower::new();
        let come = [frame(0x83, 3), frame(TEXT, 1)].concat();
        assert_eq!(followed(&mut follower, &come, 1).0, come);
    }
}
