//! The file that has the log of the core's inputs, in the format of [`memtun_core::log`]: written by the daemon, read by `debug
//! replay-log`.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use memtun_core::{
    Limits,
    log::{self, End, LogError, Record, Start},
};

/// The variable that names the file.
pub(crate) const VARIABLE: &str = "MEMTUN_LOG_INPUTS";

/// The log of a daemon's inputs could not be begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginError {
    /// The file is there.
    #[error(
        "{VARIABLE}: {0} exists, and memtun overwrites no log; remove the file, or name another one"
    )]
    Exists(String),
    /// The system.
    #[error("{VARIABLE}: creating {path}: {error}")]
    System {
        /// The file.
        path: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// A file that a daemon's inputs are to be logged to. Nobody but its user may read it.
#[derive(Debug)]
pub(crate) struct InputLog {
    file: File,
    path: PathBuf,
    /// Bytes of whole records.
    length: u64,
}

impl InputLog {
    /// Creates the file that the environment asks for, if it does.
    ///
    /// # Errors
    ///
    /// [`BeginError`]: it exists, or cannot be created.
    pub(crate) fn from_environment() -> Result<Option<Self>, BeginError> {
        let path = env::var_os(VARIABLE).filter(|path| !path.is_empty());
        path.as_deref().map(OsStr::as_ref).map(Self::create).transpose()
    }

    /// A file that is open.
    #[cfg(test)]
    pub(crate) fn of(file: File) -> Self {
        Self { file, path: PathBuf::new(), length: 0 }
    }

    /// Creates the file.
    pub(crate) fn create(path: &Path) -> Result<Self, BeginError> {
        let shown = || path.display().to_string();
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                BeginError::Exists(shown())
            } else {
                BeginError::System { path: shown(), error }
            }
        })?;
        Ok(Self { file, path: path.to_owned(), length: 0 })
    }

    /// Its path, for people.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what comes before all inputs.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub(crate) fn begin(&mut self, seed: u64, limits: Limits) -> io::Result<()> {
        self.append(&log::beginning(seed, limits))
    }

    /// Writes whole records, or none of them.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub(crate) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(records);
        match &written {
            Ok(()) => self.length += records.len() as u64,
            // A reader that finds part of a record says so. It is better if there is none.
            Err(_) => drop(self.file.set_len(self.length)),
        }
        written
    }

    /// Says how it ends. This takes no more room.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub(crate) fn end(&self, how: End) -> io::Result<()> {
        self.file.write_all_at(&[how as u8], log::END_AT as u64)
    }
}

/// Why a log cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// It is no log, or another version's, or damaged.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The system.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Reads a log.
pub(crate) struct Reader<R> {
    from: BufReader<R>,
    record: Vec<u8>,
    end: End,
}

/// What comes next in a log.
#[derive(Debug)]
pub(crate) enum Next {
    /// A record.
    Record(Box<Record>),
    /// Nothing.
    End,
    /// A part of a record.
    Torn,
}

impl<R: Read> Reader<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub(crate) fn new(from: R) -> Result<(Self, Start), ReadError> {
        let mut from = BufReader::new(from);
        let mut head = [0; log::RECORDS_AT];
        from.read_exact(&mut head).map_err(|error| {
            let is_short = error.kind() == io::ErrorKind::UnexpectedEof;
            if is_short { LogError::Other.into() } else { ReadError::from(error) }
        })?;
        let end = log::end(head)?;
        let mut reader = Self { from, record: Vec::new(), end };
        let start = match reader.record()? {
            Some(true) => Start::decode(&reader.record)?,
            Some(false) | None => return Err(LogError::Damaged.into()),
        };
        Ok((reader, start))
    }

    /// How the log ended.
    pub(crate) fn end(&self) -> End {
        self.end
    }

    /// Reads on.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub(crate) fn next(&mut self) -> Result<Next, ReadError> {
        Ok(match self.record()? {
            Some(true) => Next::Record(Box::new(Record::decode(&self.record)?)),
            Some(false) => Next::Torn,
            None => Next::End,
        })
    }

    /// Reads a record, if there is one; false: only part of it is there.
    fn record(&mut self) -> Result<Option<bool>, ReadError> {
        self.record.clear();
        if self.from.fill_buf()?.is_empty() {
            return Ok(None);
        }
        if self.read(log::LENGTH)? < log::LENGTH {
            return Ok(Some(false));
        }
        let length = self.record.first_chunk().map_or(0, |length| u32::from_le_bytes(*length));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > log::MAX_RECORD {
            return Err(LogError::Damaged.into());
        }
        self.record.clear();
        Ok(Some(self.read(length)? == length))
    }

    fn read(&mut self, length: usize) -> io::Result<usize> {
        self.from.by_ref().take(length as u64).read_to_end(&mut self.record)
    }
}
