//! The model of storage behind the trait that the origin uses.

use core::ops::Range;
use core::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};

use super::{Call, ModelStorage, Reply, version};
use crate::storage::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError, StorageResult,
    Version,
};

impl ModelStorage {
    async fn write_if(&self, call: Call, key: &Key) -> StorageResult<()> {
        match self.call(call).await {
            Reply::Written(Ok(())) => Ok(()),
            Reply::Written(Err(())) => Err(StorageError::conflict("write object", key)),
            _ => Err(StorageError::unavailable(
                "write object",
                key,
                "injected fault",
            )),
        }
    }
}

#[async_trait]
impl Storage for ModelStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        let call = Call::Create(self.within(key), body.clone());
        self.write_if(call, key).await?;
        Ok(version(&body))
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        let call = Call::Swap(self.within(key), seen.clone(), body.clone());
        self.write_if(call, key).await?;
        Ok(version(&body))
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        let Reply::Object(found) = self.call(Call::Read(self.within(key))).await else {
            return Ok(None);
        };
        Ok(found)
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        let object = self
            .read(key)
            .await?
            .ok_or_else(|| StorageError::missing("read range", key))?;
        let bytes = object.body.slice(range.start as usize..range.end as usize);
        Ok(stream::once(async move { Ok(bytes) }).boxed())
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        let prefix = format!("{}{prefix}", self.region);
        let after = after.map(|after| self.within(after));
        let call = Call::List(prefix, after, limit);
        let Reply::Page(mut page) = self.call(call).await else {
            return Ok(Page::default());
        };
        for entry in &mut page.entries {
            entry.key = self.without(entry.key.as_str());
        }
        Ok(page)
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        Ok(Box::new(Writer {
            model: self.clone(),
            key: key.clone(),
            bytes: BytesMut::new(),
        }))
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.call(Call::Delete(self.within(key))).await;
        Ok(())
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        let call = Call::Remove(self.within(key), seen.clone());
        self.write_if(call, key).await
    }

    async fn presigned_get(&self, _: &Key, _: Duration) -> StorageResult<Option<String>> {
        Ok(None)
    }

    fn is_remote(&self) -> bool {
        false
    }
}

struct Writer {
    model: ModelStorage,
    key: Key,
    bytes: BytesMut,
}

#[async_trait]
impl ObjectWriter for Writer {
    async fn write(&mut self, bytes: Bytes) -> StorageResult<()> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> StorageResult<()> {
        let body = self.bytes.freeze();
        self.model.create(&self.key, body).await.map(drop)
    }
}
