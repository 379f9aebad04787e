//! The buffer of a request body.

use std::{collections::VecDeque, iter, mem};

use bytes::{Bytes, BytesMut};

/// A queue of data chunks.
///
/// Chunks are copied, since a small slice can keep a large allocation alive, and [`Bytes`] does not
/// report the size of its allocation. The exception is the only chunk of a body. Most bodies consist of
/// one chunk, which takes no allocation.
#[derive(Default)]
pub(super) struct ChunkBuffer {
    /// The first chunk, if it is shared with the caller.
    shared: Option<Bytes>,
    copied: Option<Box<CopiedChunks>>,
}

/// Copied data, in chunks that double the capacity each time.
#[derive(Default)]
struct CopiedChunks {
    chunks: VecDeque<Bytes>,
    /// The data after `chunks`, not yet frozen.
    tail: BytesMut,
    /// Number of bytes copied.
    len: usize,
}

impl ChunkBuffer {
    /// Returns the number of chunks, without the tail.
    #[inline]
    pub(super) fn len(&self) -> usize {
        let copied = self.copied.as_ref();
        usize::from(self.shared.is_some()) + copied.map_or(0, |copied| copied.chunks.len())
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&Bytes> {
        match index.checked_sub(usize::from(self.shared.is_some())) {
            None => self.shared.as_ref(),
            Some(index) => self.copied.as_ref()?.chunks.get(index),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Bytes> {
        self.shared
            .take()
            .or_else(|| self.copied.as_mut()?.chunks.pop_front())
    }

    /// Removes the first `count` chunks.
    pub(super) fn take_front(&mut self, count: usize) -> Vec<Bytes> {
        iter::from_fn(|| self.pop_front()).take(count).collect()
    }

    /// Sets the first chunk, without a copy. The buffer must be empty.
    #[inline]
    pub(super) fn set_shared(&mut self, data: &Bytes) {
        debug_assert!(self.len() == 0);
        if !data.is_empty() {
            self.shared = Some(data.clone());
        }
    }

    /// Appends a copy of `data`. The capacity of all copies exceeds neither twice their length (at least
    /// [`MIN_CAPACITY`]) nor `limit`.
    pub(super) fn push_copy(&mut self, data: &[u8], limit: usize) {
        if !data.is_empty() {
            self.copied.get_or_insert_default().push(data, limit);
        }
    }

    /// Freezes the tail, if there is one, into a chunk.
    pub(super) fn flush_tail(&mut self) {
        if let Some(copied) = &mut self.copied {
            copied.flush_tail();
        }
    }

    pub(super) fn clear_tail(&mut self) {
        if let Some(copied) = &mut self.copied {
            copied.tail = BytesMut::new();
        }
    }
}

/// The capacity of the first copied chunk, if the limit allows it.
const MIN_CAPACITY: usize = 1024;

impl CopiedChunks {
    fn push(&mut self, data: &[u8], limit: usize) {
        let spare = self.tail.capacity().saturating_sub(self.tail.len());
        let (head, rest) = data.split_at(spare.min(data.len()));
        self.tail.extend_from_slice(head);
        if !rest.is_empty() {
            self.flush_tail();
            // All earlier chunks are full, thus their capacity is their length.
            let allocated = self.len.saturating_add(head.len());
            let capacity = allocated
                .max(MIN_CAPACITY)
                .min(limit.saturating_sub(allocated))
                .max(rest.len());
            self.tail = BytesMut::with_capacity(capacity);
            self.tail.extend_from_slice(rest);
        }
        self.len = self.len.saturating_add(data.len());
    }

    fn flush_tail(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        let chunk = match self.tail.len() == self.tail.capacity() {
            true => mem::take(&mut self.tail),
            // The spare capacity stays in use.
            false => self.tail.split(),
        };
        self.chunks.push_back(chunk.freeze());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(usize),
        Pop,
        Flush,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0usize..6000).prop_map(Step::Push),
            1 => Just(Step::Pop),
            1 => Just(Step::Flush),
        ]
    }

    proptest! {
        #[test]
        fn push_and_pop_preserve_bytes(
            shared in 0usize..100,
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let only = Bytes::from(vec![b'x'; shared]);
            let mut buffer = ChunkBuffer::default();
            buffer.set_shared(&only);
            let (mut pushed, mut popped) = (only.to_vec(), Vec::new());
            for (index, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(length) => {
                        let data = vec![index as u8; length];
                        buffer.push_copy(&data, usize::MAX);
                        pushed.extend_from_slice(&data);
                    }
                    Step::Pop => popped.extend(buffer.pop_front().into_iter().flatten()),
                    Step::Flush => buffer.flush_tail(),
                }
            }
            buffer.flush_tail();
            for index in 0..buffer.len() {
                popped.extend_from_slice(buffer.get(index).unwrap());
            }
            prop_assert!(buffer.get(buffer.len()).is_none());
            prop_assert!(popped == pushed);
        }

        #[test]
        fn copies_allocate_at_most_twice_their_length_and_at_most_the_limit(
            lengths in proptest::collection::vec((0usize..6000, any::<bool>()), 0..40),
            spare in 0usize..6000,
        ) {
            let limit = spare + lengths.iter().map(|(length, _)| length).sum::<usize>();
            let mut pushed = 0;
            let mut buffer = ChunkBuffer::default();
            let mut tail_capacity = 0;
            for (length, flush) in lengths {
                buffer.push_copy(&vec![0; length], limit);
                pushed += length;
                if flush {
                    buffer.flush_tail();
                }
                let Some(copied) = &buffer.copied else { continue };
                tail_capacity = copied.tail.capacity() - copied.tail.len();
            }
            let allocated = pushed + tail_capacity;
            prop_assert!(allocated <= limit);
            prop_assert!(allocated <= (2 * pushed).max(MIN_CAPACITY));
            // Each chunk doubles the capacity; the 40 flushes add one each.
            prop_assert!(buffer.len() <= 40 + 9);
        }
    }
}
