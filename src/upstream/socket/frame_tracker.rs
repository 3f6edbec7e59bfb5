//! Follows what comes in beneath the WebSocket library: which message is under way, and which of them were text.
//!
//! The library keeps to itself that a message in parts has begun, and throws away text is not UTF-8. So a text
//! is handed to it as binary, which it takes unread, and whoever takes the message asks here what it was. Headers are
//! read by the library's own reader. A data frame that breaks the protocol is left to the library to refuse. A control
//! frame that does is refused here: the library tells neither kind from the other in its errors.

use std::{collections::VecDeque, io::Cursor};

use tokio_tungstenite::tungstenite::{
    Error,
    error::ProtocolError,
    protocol::frame::{
        FrameHeader,
        coding::{Data, OpCode},
    },
};

/// The longest header of RFC 6455 section 5.2.
const HEADER_LEN_MAX: usize = 14;
/// Where the first byte of a header has its opcode.
const OPCODE_BITS: u8 = 0x0f;
/// The bit of an opcode that makes it a control frame's.
const CONTROL_BIT: u8 = 0x08;
/// The longest payload of a control frame: RFC 6455 section 5.5.
const CONTROL_LEN_MAX: u64 = 125;

/// Follows one connection from its first frame on. Messages are counted from 0.
#[derive(Debug)]
pub(super) struct FrameTracker {
    state: FrameParseState,
    messages: u64,
    partial_message: Option<u64>,
    /// Which messages came as binary and were not asked for yet: no more than one read can hold, as the library reads
    /// only when it has no whole frame left.
    binaries: VecDeque<u64>,
}

/// What the next byte belongs to.
#[derive(Debug)]
enum FrameParseState {
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
    NotWebSocket,
    /// Nothing more is handed on.
    Refused(ControlFault),
}

/// What is wrong with the header of a control frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ControlFault {
    #[error("control frame with an unknown opcode")]
    Opcode,
    #[error("control frame with reserved bits")]
    ReservedBits,
    #[error("masked control frame")]
    Masked,
    #[error("fragmented control frame")]
    Fragmented,
    #[error("control frame longer than {CONTROL_LEN_MAX} bytes")]
    TooLong,
}

impl ControlFault {
    fn of(header: &FrameHeader, len: u64) -> Option<Self> {
        let faults = [
            (header.rsv1 || header.rsv2 || header.rsv3, Self::ReservedBits),
            (header.mask.is_some(), Self::Masked),
            (!header.is_final, Self::Fragmented),
            (len > CONTROL_LEN_MAX, Self::TooLong),
        ];
        let is_control = matches!(header.opcode, OpCode::Control(_));
        faults.into_iter().find(|(is_so, _)| *is_so && is_control).map(|(_, fault)| fault)
    }
}

impl FrameTracker {
    pub(super) fn new() -> Self {
        Self { state: FrameParseState::header(), messages: 0, partial_message: None, binaries: VecDeque::new() }
    }

    /// The message that has begun and is not whole.
    pub(super) fn partial_message(&self) -> Option<u64> {
        self.partial_message
    }

    /// Whether this message came as text. They are asked for in their order.
    pub(super) fn was_text(&mut self, message: u64) -> bool {
        self.binaries.pop_front_if(|binary| *binary == message).is_none()
    }

    /// Follows the bytes that were read, and makes binary messages of texts. Returns how many may be handed on: a refused
    /// control frame and what is behind it may not.
    pub(super) fn scan(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match self.step(&mut bytes[at..]) {
                0 => break,
                taken => at += taken,
            }
        }
        at
    }

    /// Why nothing more is handed on.
    pub(super) fn refused(&self) -> Option<ControlFault> {
        match self.state {
            FrameParseState::Refused(fault) => Some(fault),
            FrameParseState::Header { .. } | FrameParseState::Payload { .. } | FrameParseState::NotWebSocket => None,
        }
    }

    /// Takes as many bytes as belong together: one at least, or none once a control frame is refused.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        match &mut self.state {
            FrameParseState::Header { read, len } => {
                read[*len] = bytes[0];
                *len += 1;
                if *len == 1 {
                    bytes[0] = as_binary(bytes[0]);
                }
                match FrameHeader::parse(&mut Cursor::new(&read[..*len])) {
                    Ok(Some((header, left))) => match ControlFault::of(&header, left) {
                        None => self.enter(&header, left),
                        Some(fault) => self.state = FrameParseState::Refused(fault),
                    },
                    Ok(None) if *len < HEADER_LEN_MAX => (),
                    Err(Error::Protocol(ProtocolError::InvalidOpcode(opcode))) if opcode & CONTROL_BIT != 0 => {
                        self.state = FrameParseState::Refused(ControlFault::Opcode);
                    }
                    Ok(None) | Err(_) => self.state = FrameParseState::NotWebSocket,
                }
                usize::from(self.refused().is_none())
            }
            FrameParseState::Payload { left, ends } => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                let (left, ends) = (*left - taken as u64, *ends);
                self.payload(left, ends);
                taken
            }
            FrameParseState::NotWebSocket => bytes.len(),
            FrameParseState::Refused(_) => 0,
        }
    }

    /// Behind a header.
    fn enter(&mut self, header: &FrameHeader, left: u64) {
        match header.opcode {
            OpCode::Control(_) => return self.payload(left, false),
            OpCode::Data(Data::Continue) => (),
            OpCode::Data(Data::Text | Data::Reserved(_)) => self.start_message(),
            OpCode::Data(Data::Binary) => {
                self.binaries.push_back(self.messages);
                self.start_message();
            }
        }
        self.payload(left, header.is_final);
    }

    fn start_message(&mut self) {
        self.partial_message = Some(self.messages);
        self.messages += 1;
    }

    fn payload(&mut self, left: u64, ends: bool) {
        if left > 0 {
            self.state = FrameParseState::Payload { left, ends };
            return;
        }
        self.state = FrameParseState::header();
        if ends {
            self.partial_message = None;
        }
    }
}

impl FrameParseState {
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
    fn followed(follower: &mut FrameTracker, bytes: &[u8], read: usize) -> (Vec<u8>, Vec<Option<u64>>) {
        let mut handed = bytes.to_vec();
        let mut under_way = Vec::new();
        for read in handed.chunks_mut(read) {
            follower.scan(read);
            under_way.push(follower.partial_message());
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
    fn text_frames_become_binary_and_are_tracked_in_any_chunking() {
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
            let mut follower = FrameTracker::new();
            assert!(followed(&mut follower, &come.concat(), read).0 == handed.concat(), "in reads of {read}");
            assert_eq!(follower.partial_message(), None);
            let texts: Vec<bool> = (0..6).map(|message| follower.was_text(message)).collect();
            assert_eq!(texts, [true, false, true, true, true, false]);
        }
    }

    #[test]
    fn a_message_is_under_way_until_its_last_part_is_whole() {
        let mut follower = FrameTracker::new();
        let come = [whole(0x01, b"a"), whole(PING, b"b"), whole(0x80, b"c"), whole(PING, b"d")].concat();
        let (_, under_way) = followed(&mut follower, &come, 1);
        let during = [vec![None], vec![Some(0); 7], vec![None; 4]].concat();
        assert_eq!(under_way, during);
    }

    #[test]
    fn a_control_frame_that_breaks_the_protocol_is_not_handed_on() {
        let masked = [&[0x88, 0x80], &[1, 2, 3, 4][..]].concat();
        for (control, fault) in [
            (frame(0x8b, 0), ControlFault::Opcode),
            (frame(0xc8, 2), ControlFault::ReservedBits),
            (masked, ControlFault::Masked),
            (frame(0x09, 0), ControlFault::Fragmented),
            (frame(0x88, 126), ControlFault::TooLong),
            (frame(0x88, 1 << 40), ControlFault::TooLong),
        ] {
            let come = [whole(BINARY, b"one"), control.clone(), whole(TEXT, b"two")].concat();
            for read in [1, 2, 3, 100] {
                let (mut follower, mut handed) = (FrameTracker::new(), 0);
                for read in come.clone().chunks_mut(read) {
                    handed += follower.scan(read);
                }
                assert_eq!(handed, whole(BINARY, b"one").len() + control.len() - 1, "{fault:?}: all but its last byte");
                assert_eq!((follower.refused(), follower.messages), (Some(fault), 1), "in reads of {read}");
            }
        }
        let mut follower = FrameTracker::new();
        let longest = whole(PING, &[0; 125]);
        assert_eq!((follower.scan(&mut longest.clone()), follower.refused()), (longest.len(), None));
    }

    #[test]
    fn what_is_no_frame_is_left_as_it_is() {
        let mut follower = FrameTracker::new();
        let come = [frame(0x83, 3), frame(TEXT, 1)].concat();
        assert_eq!(followed(&mut follower, &come, 1).0, come);
    }
}
