//! Makes the bucket where there is none, with as many replicas as the cluster has
//! room for.

use super::Registry;
use super::failure::{CREATING, RegistryError};
use crate::jetstream::bucket::NewBucket;
use crate::jetstream::replies::{self, StreamInfo};
use crate::jetstream::requests;

/// A bucket that was made.
pub struct Made {
    /// What the server made of it: it may drop what it does not know.
    pub info: StreamInfo,
    /// By us; otherwise one with this configuration was there already.
    pub ours: bool,
    /// What it was asked for in the end.
    pub new: NewBucket,
}

impl Registry {
    /// Makes the bucket. Where there is no room for so many replicas, and
    /// `fewer_will_do`, fewer are asked for.
    pub fn make_bucket(
        &mut self,
        wanted: NewBucket,
        fewer_will_do: bool,
    ) -> Result<Made, RegistryError> {
        let bucket = self.bucket().clone();
        let mut new = wanted;
        loop {
            let request =
                requests::create_bucket(&bucket, new.replicas, new.storage, new.marker_ttl);
            let made = self.request(CREATING, &request).and_then(|reply| {
                Ok((self.read_info(CREATING, &reply)?, replies::did_create(reply.data())))
            });
            let error = match made {
                Ok((info, ours)) => return Ok(Made { info, ours, new }),
                Err(error) => error,
            };
            let code = error.api_code().filter(|_| fewer_will_do);
            match code.and_then(|code| new.after_refusal(code)) {
                Some(fewer) => new = fewer,
                None => return Err(error),
            }
        }
    }
}
