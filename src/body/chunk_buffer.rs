//! What is kept of a request body.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Data in order. Most bodies come in one piece, which takes no allocation.
#[derive(Default)]
pub(super) struct Frames {
    first: Option<Bytes>,
    more: Option<Box<More>>,
}

#[derive(Default)]
struct More {
    frames: VecDeque<Bytes>,
    /// Small data behind that, copied together, and no frame yet.
    crumbs: BytesMut,
}

impl Frames {
    pub(super) fn len(&self) -> usize {
        let more = self.more.as_ref().map_or(0, |more| more.frames.len());
        usize::from(self.first.is_some()) + more
    }

    pub(super) fn get(&self, index: usize) -> Option<&Bytes> {
        match index.checked_sub(usize::from(self.first.is_some())) {
            None => self.first.as_ref(),
            Some(index) => self.more.as_ref()?.frames.get(index),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Bytes> {
        self.first
            .take()
            .or_else(|| self.more.as_mut()?.frames.pop_front())
    }

    /// Keeps data as it is, unless there is much of it in small pieces: each would hold on to the buffer
    /// that it is a part of, which may be large.
    pub(super) fn push(&mut self, data: &Bytes) {
        const AS_THEY_ARE: usize = 16;
        const SMALL: usize = 4 * 1024;

        if self.len() >= AS_THEY_ARE && data.len() < SMALL {
            let more = self.more.get_or_insert_default();
            more.crumbs.extend_from_slice(data);
        } else if !data.is_empty() {
            self.sweep();
            match self.len() {
                0 => self.first = Some(data.clone()),
                _ => {
                    let more = self.more.get_or_insert_default();
                    more.frames.push_back(data.clone());
                }
            }
        }
    }

    /// Makes a frame of the crumbs, if there are any.
    pub(super) fn sweep(&mut self) {
        let Some(more) = &mut self.more else { return };
        if !more.crumbs.is_empty() {
            more.frames.push_back(more.crumbs.split().freeze());
        }
    }

    pub(super) fn forget_crumbs(&mut self) {
        if let Some(more) = &mut self.more {
            more.crumbs = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn they_are_a_queue_of_bytes(
            steps in proptest::collection::vec(
                prop_oneof![3 => (0usize..6000).prop_map(Some), 1 => Just(None)],
                0..60,
            ),
        ) {
            let (mut frames, mut pushed, mut popped) = (Frames::default(), Vec::new(), Vec::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Some(length) => {
                        let data = Bytes::from(vec![number as u8; length]);
                        frames.push(&data);
                        pushed.extend_from_slice(&data);
                    }
                    None => popped.extend(frames.pop_front().into_iter().flatten()),
                }
            }
            frames.sweep();
            for index in 0..frames.len() {
                popped.extend_from_slice(frames.get(index).unwrap());
            }
            prop_assert!(frames.get(frames.len()).is_none());
            prop_assert!(popped == pushed);
        }
    }
}
