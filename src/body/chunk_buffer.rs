//! The buffer of a request body.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A queue of data chunks, which coalesces small ones.
///
/// Most bodies consist of one chunk, which takes no allocation.
#[derive(Default)]
pub(super) struct ChunkBuffer {
    first: Option<Bytes>,
    overflow: Option<Box<Overflow>>,
}

/// The chunks after the first.
#[derive(Default)]
struct Overflow {
    chunks: VecDeque<Bytes>,
    /// Coalesced small chunks after `chunks`, not yet frozen.
    tail: BytesMut,
}

impl ChunkBuffer {
    /// Returns the number of chunks, without the tail.
    pub(super) fn len(&self) -> usize {
        let overflow = self.overflow.as_ref();
        usize::from(self.first.is_some()) + overflow.map_or(0, |overflow| overflow.chunks.len())
    }

    pub(super) fn get(&self, index: usize) -> Option<&Bytes> {
        match index.checked_sub(usize::from(self.first.is_some())) {
            None => self.first.as_ref(),
            Some(index) => self.overflow.as_ref()?.chunks.get(index),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Bytes> {
        self.first
            .take()
            .or_else(|| self.overflow.as_mut()?.chunks.pop_front())
    }

    /// Appends data without a copy, or copies it to the tail if it is one of many small chunks: each of
    /// those could keep a much larger allocation alive.
    pub(super) fn push(&mut self, data: &Bytes) {
        const MAX_UNCOALESCED_CHUNKS: usize = 16;
        const SMALL: usize = 4 * 1024;

        if self.len() >= MAX_UNCOALESCED_CHUNKS && data.len() < SMALL {
            let overflow = self.overflow.get_or_insert_default();
            overflow.tail.extend_from_slice(data);
        } else if !data.is_empty() {
            self.flush_tail();
            match self.len() {
                0 => self.first = Some(data.clone()),
                _ => {
                    let overflow = self.overflow.get_or_insert_default();
                    overflow.chunks.push_back(data.clone());
                }
            }
        }
    }

    /// Freezes the tail, if there is one, into a chunk.
    pub(super) fn flush_tail(&mut self) {
        let Some(overflow) = &mut self.overflow else {
            return;
        };
        if !overflow.tail.is_empty() {
            overflow.chunks.push_back(overflow.tail.split().freeze());
        }
    }

    pub(super) fn clear_tail(&mut self) {
        if let Some(overflow) = &mut self.overflow {
            overflow.tail = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn push_and_pop_preserve_bytes(
            steps in proptest::collection::vec(
                prop_oneof![3 => (0usize..6000).prop_map(Some), 1 => Just(None)],
                0..60,
            ),
        ) {
            let mut buffer = ChunkBuffer::default();
            let (mut pushed, mut popped) = (Vec::new(), Vec::new());
            for (index, step) in steps.into_iter().enumerate() {
                match step {
                    Some(length) => {
                        let data = Bytes::from(vec![index as u8; length]);
                        buffer.push(&data);
                        pushed.extend_from_slice(&data);
                    }
                    None => popped.extend(buffer.pop_front().into_iter().flatten()),
                }
            }
            buffer.flush_tail();
            for index in 0..buffer.len() {
                popped.extend_from_slice(buffer.get(index).unwrap());
            }
            prop_assert!(buffer.get(buffer.len()).is_none());
            prop_assert!(popped == pushed);
        }
    }
}
