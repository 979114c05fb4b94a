//! Protocol Buffers' wire format, writing only: what the few messages of TensorBoard's and
//! Weights & Biases' files need.
//!
//! Reference: <https://protobuf.dev/programming-guides/encoding/>. Fields with the default of
//! proto3 (0, empty) are left out, as every writer does.

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// A message, field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// `int32`, `int64`, `uint64`, `bool` or an enum: never negative here.
    pub(super) fn number(mut self, field: u64, value: u64) -> Self {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value);
        }
        self
    }

    /// `double`.
    pub(super) fn double(mut self, field: u64, value: f64) -> Self {
        if value.to_bits() != 0 {
            self.varint(field << 3 | FIXED64);
            self.0.extend(value.to_le_bytes());
        }
        self
    }

    /// `float`, also where it is 0: a value in a `oneof` is there or not.
    pub(super) fn float_in_oneof(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | FIXED32);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// `string` or `bytes`.
    pub(super) fn text(self, field: u64, value: &str) -> Self {
        if value.is_empty() { self } else { self.bytes(field, value.as_bytes()) }
    }

    /// A message within, also where it is empty.
    pub(super) fn message(self, field: u64, inner: &Self) -> Self {
        self.bytes(field, &inner.0)
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | LENGTH);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// What it is on the wire.
    pub(super) fn encoded(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the encoding guide.
    #[test]
    fn the_guides_examples_have_its_bytes() {
        let encoded = |message: Message| message.encoded().to_vec();
        assert_eq!(encoded(Message::default().number(1, 150)), [0x08, 0x96, 0x01]);
        assert_eq!(encoded(Message::default().text(2, "testing")), b"\x12\x07testing");
        let inner = Message::default().number(1, 150);
        assert_eq!(encoded(Message::default().message(3, &inner)), [0x1a, 3, 8, 0x96, 1]);
        let empty = Message::default().number(1, 0).double(2, 0.0).text(3, "");
        assert!(empty.encoded().is_empty());
        assert_eq!(
            encoded(Message::default().double(1, 1.0)),
            [0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]
        );
        assert_eq!(encoded(Message::default().float_in_oneof(2, 0.0)), [0x15, 0, 0, 0, 0]);
        assert_eq!(encoded(Message::default().number(16, 1)), [0x80, 0x01, 0x01]);
    }
}
