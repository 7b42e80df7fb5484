//! Keyed bytes that an instance keeps, for what does not fit its one document. Each access is a call to the host.

use crate::bindings::bureau::agent::{storage, types as raw};

/// The keyed storage of an instance. Keys have 1 to 512 bytes; what is written becomes durable with the turn
/// that wrote it.
///
/// ```no_run
/// # use bureau_sdk::prelude::*;
/// # async fn example(run: &Run) -> Result<()> {
/// let storage = run.storage();
/// storage.set("note/1", b"buy milk")?;
/// for (key, note) in storage.list("note/", None, 100).await? {
///     println!("{key} has {} bytes", note.len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Storage;

impl Storage {
    /// The storage of the instance that runs, for where there is no run.
    pub fn of_instance() -> Self {
        Self
    }

    /// The value under a key.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(storage::get(key.into()).await?)
    }

    /// Stores a value under a key.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        Ok(storage::set(key, value)?)
    }

    /// Removes a key. A key that is not there is no error.
    pub fn delete(&self, key: &str) -> Result<(), StoreError> {
        Ok(storage::delete(key)?)
    }

    /// The pairs whose keys start with `prefix` and come after `after`, in byte order, at most `limit` of them.
    /// An answer also ends at the host's limit of bytes, so read on after its last key until it is empty.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        Ok(storage::list(prefix.into(), after.map(Into::into), limit).await?)
    }
}

/// Why state or storage could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The value is too large.
    #[error("the value is larger than {limit} bytes, the limit")]
    TooLarge {
        /// What a value may have, in bytes.
        limit: u64,
    },
    /// The key or the value cannot be stored; the message says why.
    #[error("it cannot be stored: {0}")]
    Invalid(String),
    /// The journal cannot be read now; the message says why.
    #[error("the journal cannot be read: {0}")]
    Unavailable(String),
}

impl From<raw::StoreError> for StoreError {
    fn from(error: raw::StoreError) -> Self {
        match error {
            raw::StoreError::TooLarge(limit) => Self::TooLarge { limit },
            raw::StoreError::Invalid(message) => Self::Invalid(message),
            raw::StoreError::Unavailable(message) => Self::Unavailable(message),
        }
    }
}
