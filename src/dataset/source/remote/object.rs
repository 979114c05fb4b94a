//! One remote object, read in blocks.
//!
//! Owns that all bytes are of the same version of the object, and reading ahead on a thread
//! of its own inside the column chunks that are being read.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::{Buf, Bytes, BytesMut};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::blocks::{BLOCK_BYTES, BLOCKS, BLOCKS_PER_REQUEST, MAX_BLOCKS};
use super::failure::Failure;
use super::stores::Place;
use super::{block_on, translate};

/// Blocks that are fetched ahead of each column chunk being read.
const AHEAD: u64 = 2 * BLOCKS_PER_REQUEST;

/// Column chunks larger than a block that are being read, by all readers.
static STREAMS: AtomicUsize = AtomicUsize::new(0);

/// An object as it was when it was opened.
pub(in super::super) struct Object {
    /// Its blocks' key.
    id: u64,
    store: Arc<dyn ObjectStore>,
    location: Path,
    pub(super) meta: ObjectMeta,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({} bytes)", self.meta.size)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        BLOCKS.forget(self.id);
    }
}

impl Object {
    /// Asks what there is.
    pub(super) fn open(place: Place) -> Result<Self, Failure> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Place { store, location } = place;
        let meta = block_on(store.head(&location))?.map_err(|error| translate(&error))?;
        if meta.e_tag.is_none() && modified(&meta).is_none() {
            return Err(Failure::NoVersion);
        }
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), store, location, meta })
    }

    pub(in super::super) fn bytes(&self) -> u64 {
        self.meta.size
    }

    /// The bytes of a range, of the version that was opened.
    fn fetch(&self, range: Range<u64>) -> Result<Bytes, Failure> {
        // A weak tag never matches by the rules of HTTP.
        let strong = self.meta.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: strong,
            ..GetOptions::default()
        };
        let got = block_on(async {
            let got = self.store.get_opts(&self.location, options).await?;
            let meta = got.meta.clone();
            Ok((meta, got.bytes().await?))
        })?;
        let (now, bytes) = got.map_err(|error| translate(&error))?;
        // Not every server knows `If-Match`.
        let then = &self.meta;
        if (now.size, &now.e_tag, modified(&now)) != (then.size, &then.e_tag, modified(then)) {
            return Err(Failure::Changed);
        }
        Ok(bytes)
    }

    fn fetch_blocks(&self, blocks: Range<u64>) -> Result<Bytes, Failure> {
        let end = blocks.end.saturating_mul(BLOCK_BYTES).min(self.meta.size);
        self.fetch(blocks.start.saturating_mul(BLOCK_BYTES)..end)
    }

    /// A block, and in the same request those up to `end` that are wanted too.
    fn block(&self, block: u64, end: u64) -> Result<Bytes, Failure> {
        BLOCKS.get(self.id, block..end.max(block + 1), |run| self.fetch_blocks(run))
    }
}

/// When it was last changed; a server that does not say so counts as 1970 elsewhere.
pub(super) fn modified(meta: &ObjectMeta) -> Option<i64> {
    Some(meta.last_modified.timestamp()).filter(|seconds| *seconds != 0)
}

/// What went wrong in reading, for whoever asks the decoder's errors.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Stash(Arc<Mutex<Option<Failure>>>);

impl Stash {
    fn put(&self, failure: Failure) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }

    pub(in super::super) fn take(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Column chunks that are read from their beginnings to their ends.
struct Chunk {
    blocks: Range<u64>,
    /// Blocks below are here or were asked for.
    asked: AtomicU64,
}

/// Reads an object for the Parquet decoder.
#[derive(Clone)]
pub(in super::super) struct Reader(Arc<Inner>);

struct Inner {
    object: Arc<Object>,
    chunks: Vec<Chunk>,
    ahead: Option<SyncSender<Range<u64>>>,
    stash: Stash,
}

impl Drop for Inner {
    fn drop(&mut self) {
        STREAMS.fetch_sub(self.chunks.len(), Ordering::Relaxed);
    }
}

impl Reader {
    /// Reads `object`, ahead inside `chunks`.
    pub(in super::super) fn new(object: &Arc<Object>, chunks: &[Range<u64>], stash: Stash) -> Self {
        let size = object.meta.size;
        let large = |chunk: &&Range<u64>| {
            chunk.start < size && chunk.end.saturating_sub(chunk.start) > BLOCK_BYTES
        };
        let chunks: Vec<Chunk> = chunks
            .iter()
            .filter(large)
            .map(|chunk| {
                let start = chunk.start / BLOCK_BYTES;
                let blocks = start..chunk.end.min(size).div_ceil(BLOCK_BYTES);
                Chunk { blocks, asked: AtomicU64::new(start) }
            })
            .collect();
        STREAMS.fetch_add(chunks.len(), Ordering::Relaxed);
        let ahead = if chunks.is_empty() { None } else { read_ahead(object) };
        Self(Arc::new(Inner { object: Arc::clone(object), chunks, ahead, stash }))
    }

    /// The bytes of a block from `place` on.
    fn from(&self, place: u64, end: u64) -> Result<Bytes, Failure> {
        let inner = &self.0;
        let block = place / BLOCK_BYTES;
        let end = end.min(inner.object.meta.size).div_ceil(BLOCK_BYTES);
        inner.wish(block);
        let mut bytes = inner.object.block(block, end)?;
        let skip = usize::try_from(place % BLOCK_BYTES).unwrap_or(usize::MAX);
        if skip > bytes.len() {
            return Err(Failure::Changed);
        }
        bytes.advance(skip);
        Ok(bytes)
    }

    fn read(&self, start: u64, length: usize) -> Result<Bytes, Failure> {
        let end = start.saturating_add(length as u64);
        let first = self.from(start, end)?;
        if first.len() >= length {
            return Ok(first.slice(..length));
        }
        let mut bytes = BytesMut::with_capacity(length);
        bytes.extend_from_slice(&first);
        while bytes.len() < length {
            let more = self.from(start + bytes.len() as u64, end)?;
            let lacking = length - bytes.len();
            bytes.extend_from_slice(more.get(..lacking).unwrap_or(&more));
        }
        Ok(bytes.freeze())
    }

    fn stash(&self, failure: Failure) -> String {
        let words = failure.to_string();
        self.0.stash.put(failure);
        words
    }
}

impl Inner {
    /// Asks for the blocks after the one that is being read. Fewer the more is read at once,
    /// so that no block is given up before it was of use.
    fn wish(&self, block: u64) {
        let Some(ahead) = &self.ahead else { return };
        let streams = STREAMS.load(Ordering::Relaxed).max(1);
        let most = ((MAX_BLOCKS / 2 / streams) as u64).min(AHEAD);
        for chunk in self.chunks.iter().filter(|chunk| chunk.blocks.contains(&block)) {
            let asked = chunk.asked.load(Ordering::Relaxed).max(block + 1);
            let until = (block + 1 + most).min(chunk.blocks.end);
            // Not one by one: a request brings several.
            let worth = until == chunk.blocks.end || until - asked.min(until) >= most.div_ceil(2);
            if asked < until && worth && ahead.try_send(asked..until).is_ok() {
                chunk.asked.store(until, Ordering::Relaxed);
            }
        }
    }
}

/// Starts the thread that fetches what is wished for. Without it, reading is only slower.
fn read_ahead(object: &Arc<Object>) -> Option<SyncSender<Range<u64>>> {
    let (sender, receiver): (_, Receiver<Range<u64>>) = sync_channel(MAX_BLOCKS);
    let object = Arc::clone(object);
    let work = move || {
        while let Ok(wished) = receiver.recv() {
            while let Some(claim) = BLOCKS.claim(object.id, wished.clone()) {
                let fetched = object.fetch_blocks(claim.run());
                // A failure is for whoever comes to need the block, and asks again.
                if claim.settle(fetched).is_err() {
                    break;
                }
            }
        }
    };
    thread::Builder::new().name("read-ahead".to_owned()).spawn(work).ok()?;
    Some(sender)
}

impl Length for Reader {
    fn len(&self) -> u64 {
        self.0.object.meta.size
    }
}

impl ChunkReader for Reader {
    type T = Bytewise;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(Bytewise { reader: self.clone(), place: start, block: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            return Err(ParquetError::EOF("beyond the end of the object".to_owned()));
        }
        if length == 0 {
            return Ok(Bytes::new());
        }
        self.read(start, length).map_err(|failure| ParquetError::General(self.stash(failure)))
    }
}

/// Reads on from a place.
pub(in super::super) struct Bytewise {
    reader: Reader,
    place: u64,
    block: Bytes,
}

impl Read for Bytewise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.place >= self.reader.len() {
            return Ok(0);
        }
        if self.block.is_empty() {
            let block = self.reader.from(self.place, self.place);
            self.block = block.map_err(|failure| io::Error::other(self.reader.stash(failure)))?;
        }
        let count = buffer.len().min(self.block.len());
        self.block.copy_to_slice(&mut buffer[..count]);
        self.place += count as u64;
        Ok(count)
    }
}
