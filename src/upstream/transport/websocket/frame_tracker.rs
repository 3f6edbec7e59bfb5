//! Scans incoming bytes below the WebSocket library: which message is partial, and which messages are text.
//!
//! The library does not report partial messages, and it discards a text that is not UTF-8. So each text frame is
//! rewritten to a binary frame, which the library passes unchecked, and the tracker remembers the type. The library
//! rejects invalid data frames. The tracker rejects invalid control frames, because errors of the library do not
//! distinguish the two.

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
/// The opcode bits of the first header byte.
const OPCODE_BITS: u8 = 0x0f;
/// The opcode bit of control frames.
const CONTROL_BIT: u8 = 0x08;
/// The longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_LEN_MAX: u64 = 125;

/// Tracks the frames of one connection. Messages are counted from 0.
#[derive(Debug)]
pub(super) struct FrameTracker {
    state: FrameParseState,
    messages: u64,
    partial_message: Option<u64>,
    /// Binary messages that were not queried yet. Bounded by one read, because the library reads only when it has no
    /// complete frame left.
    binaries: VecDeque<u64>,
}

/// The part of a frame that the next byte belongs to.
#[derive(Debug)]
enum FrameParseState {
    Header {
        read: [u8; HEADER_LEN_MAX],
        len: usize,
    },
    /// `ends`: the message ends with this payload.
    Payload {
        left: u64,
        ends: bool,
    },
    /// Not a WebSocket frame; the library reports it.
    NotWebSocket,
    /// An invalid control frame: no more bytes are passed on.
    Refused(ControlFault),
}

/// Why the header of a control frame is invalid.
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

    /// The message that has begun and is not complete.
    pub(super) fn partial_message(&self) -> Option<u64> {
        self.partial_message
    }

    /// Whether this message arrived as text. Must be called in the order of messages.
    pub(super) fn was_text(&mut self, message: u64) -> bool {
        self.binaries.pop_front_if(|binary| *binary == message).is_none()
    }

    /// Scans read bytes and rewrites text frames to binary. Returns how many bytes may be passed on: those before an
    /// invalid control frame.
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

    /// The invalid control frame, if there was one.
    pub(super) fn refused(&self) -> Option<ControlFault> {
        match self.state {
            FrameParseState::Refused(fault) => Some(fault),
            FrameParseState::Header { .. } | FrameParseState::Payload { .. } | FrameParseState::NotWebSocket => None,
        }
    }

    /// Consumes at least one byte, or none after an invalid control frame.
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

    /// Enters the payload after a header.
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

/// The first header byte, with the opcode text replaced by binary.
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

    /// Scans the bytes in chunks of this length. Returns the bytes passed on and the partial message after each chunk.
    fn scanned(tracker: &mut FrameTracker, bytes: &[u8], read: usize) -> (Vec<u8>, Vec<Option<u64>>) {
        let mut passed = bytes.to_vec();
        let mut partial = Vec::new();
        for read in passed.chunks_mut(read) {
            tracker.scan(read);
            partial.push(tracker.partial_message());
        }
        (passed, partial)
    }

    fn frame(first: u8, len: usize) -> Vec<u8> {
        let len = match u16::try_from(len) {
            Ok(short @ 0..=125) => vec![u8::try_from(short).unwrap()],
            Ok(long) => [&[126], &long.to_be_bytes()[..]].concat(),
            Err(_) => [&[127], &(len as u64).to_be_bytes()[..]].concat(),
        };
        [&[first], &len[..]].concat()
    }

    fn frame_with(first: u8, payload: &[u8]) -> Vec<u8> {
        [frame(first, payload.len()), payload.to_vec()].concat()
    }

    #[test]
    fn text_frames_become_binary_and_are_tracked_in_any_chunking() {
        let long = vec![TEXT; 70_000];
        let input = [
            frame_with(TEXT, b"\x81one"),
            frame_with(PING, b"\x81"),
            frame_with(BINARY, b"two"),
            frame_with(TEXT, b""),
            frame_with(TEXT, &long),
            // Text in three parts with a ping between them.
            frame_with(0x01, b"fo"),
            frame_with(PING, b""),
            frame_with(0x00, b""),
            frame_with(0x80, &long[..300]),
            frame_with(BINARY, b""),
        ];
        let passed = [
            frame_with(BINARY, b"\x81one"),
            frame_with(PING, b"\x81"),
            frame_with(BINARY, b"two"),
            frame_with(BINARY, b""),
            frame_with(BINARY, &long),
            frame_with(0x02, b"fo"),
            frame_with(PING, b""),
            frame_with(0x00, b""),
            frame_with(0x80, &long[..300]),
            frame_with(BINARY, b""),
        ];
        for read in [1, 2, 3, 7, 64, 1_000, 100_000] {
            let mut tracker = FrameTracker::new();
            assert!(scanned(&mut tracker, &input.concat(), read).0 == passed.concat(), "in reads of {read}");
            assert_eq!(tracker.partial_message(), None);
            let texts: Vec<bool> = (0..6).map(|message| tracker.was_text(message)).collect();
            assert_eq!(texts, [true, false, true, true, true, false]);
        }
    }

    #[test]
    fn a_message_is_partial_until_its_last_frame_is_complete() {
        let mut tracker = FrameTracker::new();
        let input =
            [frame_with(0x01, b"a"), frame_with(PING, b"b"), frame_with(0x80, b"c"), frame_with(PING, b"d")].concat();
        let (_, partial) = scanned(&mut tracker, &input, 1);
        let during = [vec![None], vec![Some(0); 7], vec![None; 4]].concat();
        assert_eq!(partial, during);
    }

    #[test]
    fn an_invalid_control_frame_is_not_passed_on() {
        let masked = [&[0x88, 0x80], &[1, 2, 3, 4][..]].concat();
        for (control, fault) in [
            (frame(0x8b, 0), ControlFault::Opcode),
            (frame(0xc8, 2), ControlFault::ReservedBits),
            (masked, ControlFault::Masked),
            (frame(0x09, 0), ControlFault::Fragmented),
            (frame(0x88, 126), ControlFault::TooLong),
            (frame(0x88, 1 << 40), ControlFault::TooLong),
        ] {
            let input = [frame_with(BINARY, b"one"), control.clone(), frame_with(TEXT, b"two")].concat();
            for read in [1, 2, 3, 100] {
                let (mut tracker, mut passed) = (FrameTracker::new(), 0);
                for read in input.clone().chunks_mut(read) {
                    passed += tracker.scan(read);
                }
                assert_eq!(
                    passed,
                    frame_with(BINARY, b"one").len() + control.len() - 1,
                    "{fault:?}: all but its last byte"
                );
                assert_eq!((tracker.refused(), tracker.messages), (Some(fault), 1), "in reads of {read}");
            }
        }
        let mut tracker = FrameTracker::new();
        let longest = frame_with(PING, &[0; 125]);
        assert_eq!((tracker.scan(&mut longest.clone()), tracker.refused()), (longest.len(), None));
    }

    #[test]
    fn invalid_frames_are_passed_unchanged() {
        let mut tracker = FrameTracker::new();
        let input = [frame(0x83, 3), frame(TEXT, 1)].concat();
        assert_eq!(scanned(&mut tracker, &input, 1).0, input);
    }
}
