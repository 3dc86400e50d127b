//! The frames of the control connections between the ranks and their hub, as bytes.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

/// The longest reason that travels.
const MAX_REASON_BYTES: usize = 4 << 10;

/// What is said on a control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Opens the connection: the rank that calls, and the secret of its job.
    Hello { rank: usize, secret: u64 },
    /// A heartbeat. From a rank: how much it has moved; from the hub: how much all ranks have.
    Beat { progress: u64 },
    /// A rank will send nothing more. From the hub: which rank.
    Left { rank: usize },
    /// From the hub: all ranks have left.
    AllLeft,
    /// The world has failed.
    Failed(Failure),
}

/// Why a world failed: what every rank is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// By an abort handle or by an error that one rank saw.
    Aborted(Arc<str>),
    /// A rank is gone, and how.
    Gone { rank: usize, how: Arc<str> },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Aborted(reason) => f.write_str(reason),
            Failure::Gone { rank, how } => write!(f, "rank {rank} is gone: {how}"),
        }
    }
}

const HELLO: u8 = 0;
const BEAT: u8 = 1;
const LEFT: u8 = 2;
const ALL_LEFT: u8 = 3;
const ABORTED: u8 = 4;
const GONE: u8 = 5;

impl Frame {
    /// Kind, rank, number, length of the text, text.
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, rank, number, text): (u8, usize, u64, &str) = match self {
            Frame::Hello { rank, secret } => (HELLO, *rank, *secret, ""),
            Frame::Beat { progress } => (BEAT, 0, *progress, ""),
            Frame::Left { rank } => (LEFT, *rank, 0, ""),
            Frame::AllLeft => (ALL_LEFT, 0, 0, ""),
            Frame::Failed(Failure::Aborted(reason)) => (ABORTED, 0, 0, reason),
            Frame::Failed(Failure::Gone { rank, how }) => (GONE, *rank, 0, how),
        };
        let text = &text.as_bytes()[..text.len().min(MAX_REASON_BYTES)];
        let mut bytes = Vec::with_capacity(17 + text.len());
        bytes.push(kind);
        bytes.extend_from_slice(&(rank as u32).to_le_bytes());
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text);
        to.write_all(&bytes)
    }

    pub(super) fn read(from: &mut impl Read) -> io::Result<Frame> {
        let mut head = [0; 17];
        from.read_exact(&mut head)?;
        let [kind, r0, r1, r2, r3, n0, n1, n2, n3, n4, n5, n6, n7, l0, l1, l2, l3] = head;
        let rank = u32::from_le_bytes([r0, r1, r2, r3]) as usize;
        let number = u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > MAX_REASON_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = vec![0; len];
        from.read_exact(&mut text)?;
        let text: Arc<str> = String::from_utf8_lossy(&text).into();
        Ok(match kind {
            HELLO => Frame::Hello { rank, secret: number },
            BEAT => Frame::Beat { progress: number },
            LEFT => Frame::Left { rank },
            ALL_LEFT => Frame::AllLeft,
            ABORTED => Frame::Failed(Failure::Aborted(text)),
            GONE => Frame::Failed(Failure::Gone { rank, how: text }),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let frames = [
            Frame::Hello { rank: 3, secret: u64::MAX - 1 },
            Frame::Beat { progress: 1 << 40 },
            Frame::Left { rank: 70_000 },
            Frame::AllLeft,
            Frame::Failed(Failure::Aborted("no – stop".into())),
            Frame::Failed(Failure::Gone { rank: 2, how: "".into() }),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|f| f.write(&mut bytes).unwrap());
        let mut reader = &bytes[..];
        for frame in frames {
            assert_eq!(Frame::read(&mut reader).unwrap(), frame);
        }
        assert!(reader.is_empty());
        assert!(Frame::read(&mut &[9u8; 17][..]).is_err(), "neither kind nor length make sense");
        let long = Frame::Failed(Failure::Aborted("x".repeat(10_000).into()));
        let mut bytes = Vec::new();
        long.write(&mut bytes).unwrap();
        assert!(Frame::read(&mut &bytes[..]).is_ok(), "it is cut");
    }
}
