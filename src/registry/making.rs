//! Makes the bucket where there is none, with as many replicas as the cluster has
//! room for.

use std::time::{Duration, Instant};

use super::Registry;
use super::failure::{CREATING, RegistryError};
use crate::jetstream::bucket::NewBucket;
use crate::jetstream::replies::{self, ApiError, StreamInfo};
use crate::jetstream::requests;
use crate::nats::Request;

/// So long the members of a cluster that has just started may take to get to know
/// each other: until then it says that it has too few.
const GATHERING: Duration = Duration::from_secs(5);
/// Between two requests meanwhile.
const GATHERING_PAUSE: Duration = Duration::from_millis(250);

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
        let gathered = self.now() + GATHERING;
        let mut new = wanted;
        loop {
            let request =
                requests::create_bucket(&bucket, new.replicas, new.storage, new.marker_ttl);
            let error = match self.create(&request, gathered) {
                Ok((info, ours)) => return Ok(Made { info, ours, new }),
                Err(error) => error,
            };
            let code = error.api_code().filter(|_| fewer_will_do && !self.stop_requested());
            match code.and_then(|code| new.after_refusal(code)) {
                Some(fewer) => new = fewer,
                None => return Err(error),
            }
        }
    }

    /// Makes the bucket by a request that has all its settings.
    pub fn make_again(&mut self, request: &Request) -> Result<StreamInfo, RegistryError> {
        let gathered = self.now() + GATHERING;
        Ok(self.create(request, gathered)?.0)
    }

    /// Asks for a bucket, and again until `gathered` where the cluster has too few
    /// members; and whether it was made by us.
    fn create(
        &mut self,
        request: &Request,
        gathered: Instant,
    ) -> Result<(StreamInfo, bool), RegistryError> {
        loop {
            let made = self.request(CREATING, request).and_then(|reply| {
                Ok((self.read_info(CREATING, &reply)?, replies::did_create(reply.data())))
            });
            match made {
                Err(error)
                    if error.api_code() == Some(ApiError::TOO_FEW_MEMBERS)
                        && self.now() < gathered
                        && !self.stop_requested() =>
                {
                    self.pause_until(gathered.min(self.now() + GATHERING_PAUSE));
                }
                made => return made,
            }
        }
    }
}
