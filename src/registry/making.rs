//! Makes the bucket where there is none, with as many replicas as the cluster has
//! room for; and changes one that exists.

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
    /// Until when a cluster that has too few members is asked again, if that begins
    /// now.
    pub fn gathered(&self) -> Instant {
        self.now() + GATHERING.min(self.timeout())
    }

    /// Makes the bucket. Where there is no room for so many replicas, and
    /// `fewer_will_do`, fewer are asked for after `gathered`.
    pub fn make_bucket(
        &mut self,
        wanted: NewBucket,
        fewer_will_do: bool,
        gathered: Instant,
    ) -> Result<Made, RegistryError> {
        let bucket = self.bucket().clone();
        let mut new = wanted;
        loop {
            let request =
                requests::create_bucket(&bucket, new.replicas, new.storage, new.marker_ttl);
            let error = match self.ask_members(CREATING, &request, gathered) {
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

    /// Makes the bucket, or changes it, by `request`, and returns what the server
    /// made of that: it may drop what it does not know.
    pub fn configure(
        &mut self,
        doing: &'static str,
        request: &Request,
        gathered: Instant,
    ) -> Result<StreamInfo, RegistryError> {
        Ok(self.ask_members(doing, request, gathered)?.0)
    }

    /// Asks for a bucket of these settings, and again until `gathered` where the
    /// cluster has too few members; and whether it was made by us.
    fn ask_members(
        &mut self,
        doing: &'static str,
        request: &Request,
        gathered: Instant,
    ) -> Result<(StreamInfo, bool), RegistryError> {
        loop {
            let made = self.request(doing, request).and_then(|reply| {
                Ok((self.read_info(doing, &reply)?, replies::did_create(reply.data())))
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
