//! Reading a layer's blob: by its compression, within what may be spent, and with the digests of both of its forms.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::UnpackError;
use super::layer::{self, Unpacked};
use super::oci::{Blob, Section};
use super::roots::{BYTES_MAX, ImportError, hex, peek, store};

/// What an image may still use.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: u64,
    entries: usize,
    /// What was left out so far.
    pub notes: Vec<String>,
}

impl Budget {
    pub fn new(bytes: u64, entries: usize) -> Self {
        Self { bytes, entries, notes: Vec::new() }
    }

    pub fn spend(&mut self, bytes: u64, entries: usize) -> Result<(), ImportError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or(ImportError::Bytes)?;
        self.entries = self.entries.checked_sub(entries).ok_or(UnpackError::Entries(layer::ENTRIES_MAX))?;
        Ok(())
    }
}

/// Passes bytes on, counts them and computes their digest.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    read: u64,
    max: u64,
}

impl<R> Hashing<R> {
    fn new(inner: R, max: u64) -> Self {
        Self { inner, hash: Sha256::new(), read: 0, max }
    }

    fn digest(self) -> String {
        hex(&self.hash.finalize())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.read += bytes as u64;
        if self.read > self.max {
            return Err(io::Error::other("there is more of it than is allowed"));
        }
        self.hash.update(&buffer[..bytes]);
        Ok(bytes)
    }
}

/// A stream in one of the forms that layers and archives come in.
enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(MultiGzDecoder<BufReader<R>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decoder<R> {
    /// By its first bytes.
    fn new(inner: R) -> Result<Self, ImportError> {
        let (first, reader) = peek(inner).map_err(UnpackError::Read)?;
        Ok(match first.as_slice() {
            [0x1f, 0x8b, ..] => Self::Gzip(MultiGzDecoder::new(reader)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                Self::Zstd(zstd::Decoder::with_buffer(reader).map_err(UnpackError::Read)?)
            }
            [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(ImportError::Compression("xz")),
            [b'B', b'Z', b'h', ..] => return Err(ImportError::Compression("bzip2")),
            _ => Self::Plain(reader),
        })
    }

    fn into_inner(self) -> BufReader<R> {
        match self {
            Self::Plain(reader) => reader,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Decompresses a whole archive into a file without a name. `None` if it is none that is compressed.
pub(super) fn inflate(archive: &File, dir: &Path) -> Result<Option<File>, ImportError> {
    let mut rewound = archive;
    rewound.rewind().map_err(UnpackError::Read)?;
    let mut decoder = match Decoder::new(archive)? {
        Decoder::Plain(_) => {
            rewound.rewind().map_err(UnpackError::Read)?;
            return Ok(None);
        }
        decoder => decoder,
    };
    let mut file = tempfile::tempfile_in(dir).map_err(store(dir))?;
    let mut buffer = vec![0; 64 << 10];
    let mut left = BYTES_MAX;
    loop {
        let bytes = decoder.read(&mut buffer).map_err(UnpackError::Read)?;
        if bytes == 0 {
            return Ok(Some(file));
        }
        left = left.checked_sub(bytes as u64).ok_or(ImportError::Bytes)?;
        file.write_all(&buffer[..bytes]).map_err(store(dir))?;
    }
}

/// Compares a blob with the digest that its manifest gives for it, if there is one.
pub(super) fn verify(archive: &File, blob: &Blob) -> Result<(), ImportError> {
    let mut reader = Hashing::new(blob.open(archive), u64::MAX);
    io::copy(&mut reader, &mut io::sink()).map_err(UnpackError::Read)?;
    compare(blob, reader)
}

fn compare(blob: &Blob, reader: Hashing<Section<'_>>) -> Result<(), ImportError> {
    match &blob.digest {
        Some(digest) if *digest != reader.digest() => {
            Err(ImportError::Digest(format!("blobs/sha256/{digest}")))
        }
        _ => Ok(()),
    }
}

/// Unpacks a layer, and returns the digest of its content: of all of it, what follows the last entry included.
pub(super) fn unpack(
    archive: &File,
    blob: &Blob,
    root: &Path,
    budget: &mut Budget,
) -> Result<(Unpacked, String), ImportError> {
    let decoder = Decoder::new(Hashing::new(blob.open(archive), u64::MAX))?;
    let mut content = Hashing::new(decoder, budget.bytes);
    let unpacked = layer::unpack(&mut content, root, budget.entries).and_then(|unpacked| {
        io::copy(&mut content, &mut io::sink()).map_err(UnpackError::Read)?;
        Ok(unpacked)
    });
    // Whatever it was that failed then, this is why.
    if content.read > content.max {
        return Err(ImportError::Bytes);
    }
    let unpacked = unpacked?;
    budget.spend(content.read, unpacked.entries)?;
    budget.notes.extend(unpacked.notes.iter().cloned());
    let Hashing { inner, hash, .. } = content;
    let mut packed = inner.into_inner();
    // What a decoder has no use for is part of the blob all the same.
    io::copy(&mut packed, &mut io::sink()).map_err(UnpackError::Read)?;
    compare(blob, packed.into_inner())?;
    Ok((unpacked, hex(&hash.finalize())))
}
