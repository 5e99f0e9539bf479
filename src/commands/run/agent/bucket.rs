//! The bucket of an agent: what it does to our TTL, and making it where there
//! is none.

use std::time::Instant;

use log::{info, warn};

use super::Agent;
use crate::cli::call::Call;
use crate::jetstream::bucket::NewBucket;
use crate::jetstream::fitness::{self, Unfit};
use crate::jetstream::replies::{ApiError, StreamInfo};
use crate::jetstream::requests;
use crate::registry::failure::{CREATING, RegistryError};
use crate::registry::making::Made;
use crate::text::duration::as_setting;

impl Agent {
    /// The bucket as it is now, fit for us.
    pub(super) fn saw(&mut self, info: &StreamInfo) {
        self.keeper.saw_bucket(self.now());
        self.registry.note(info);
        self.say_defeats(info);
        if self.seen.as_ref() != Some(&info.config) {
            self.seen = Some(info.config.clone());
        }
    }

    /// Warns where the bucket takes our TTL and does not keep to it, once.
    fn say_defeats(&mut self, info: &StreamInfo) {
        let bucket = self.registry.bucket();
        let defeats = fitness::ttl_defeats(info, self.options.ttl);
        for defeat in defeats.iter().filter(|defeat| !self.defeats.contains(defeat)) {
            let call = Call::of(self.registry.settings(), bucket);
            warn!("bucket {bucket}: {}; hint: {}", defeat.message, call.complete(&defeat.hint));
        }
        self.defeats = defeats;
    }

    /// Makes the bucket: as it was seen last, or as a new one.
    pub(super) fn create_bucket(&mut self) -> Result<StreamInfo, RegistryError> {
        // Whichever it is, the members of a cluster are waited for once.
        let gathered = self.registry.gathered();
        let made = match self.create_again(gathered) {
            Some(made) => made,
            None => {
                self.unless_stopped()?;
                self.create_new(gathered)
            }
        };
        match made {
            // Another was quicker, with other settings.
            Err(error) if error.api_code() == Some(ApiError::NAME_TAKEN) => {
                self.registry.fit_info()
            }
            made => made,
        }
    }

    /// As it was seen last. `None` where that cannot be any more: a cluster may
    /// have fewer members by now, and another version other settings.
    fn create_again(&mut self, gathered: Instant) -> Option<Result<StreamInfo, RegistryError>> {
        let bucket = self.registry.bucket().clone();
        let request = requests::create_again(&bucket, self.seen.as_ref()?);
        let made = self.registry.configure(CREATING, &request, gathered);
        if let Err(error) = &made
            && let Some(ApiError::TOO_FEW_MEMBERS | ApiError::NO_CLUSTER | ApiError::BAD_CONFIG) =
                error.api_code()
        {
            warn!("bucket {bucket} cannot be made again as it was: {error}");
            return None;
        }
        Some(made.and_then(|info| {
            self.judge(&info)?;
            info!("created bucket {bucket} again, as it was: {}", settings(&info));
            Ok(info)
        }))
    }

    fn create_new(&mut self, gathered: Instant) -> Result<StreamInfo, RegistryError> {
        let bucket = self.registry.bucket().clone();
        let cluster = self.registry.server().and_then(|server| server.cluster.clone());
        let wanted = NewBucket::standard(&bucket, cluster.as_deref());
        let Made { info, new, .. } = self.registry.make_bucket(wanted, true, gathered)?;
        self.judge(&info)?;
        info!("created bucket {bucket}: {}", settings(&info));
        // A server that is in no cluster has said so.
        if new.replicas < wanted.replicas && cluster.is_some() {
            let more = format!("aegis-agent init --replicas {}", wanted.replicas);
            warn!(
                "bucket {bucket} has {} of the {} replicas that it should have: the cluster has no \
                 more members with room for one; when it has: {}",
                new.replicas,
                wanted.replicas,
                Call::of(self.registry.settings(), &bucket).complete(&more)
            );
        }
        Ok(info)
    }

    fn judge(&self, info: &StreamInfo) -> Result<(), RegistryError> {
        let connected = self.registry.server().map_or("", |server| &server.version);
        let judged: Result<(), Unfit> =
            fitness::judge_bucket(self.registry.bucket(), info, connected);
        judged.map_err(RegistryError::Unfit)
    }
}

/// What a person wants to know of a bucket that was made.
fn settings(info: &StreamInfo) -> String {
    let replicas = info.number("num_replicas").max(1);
    let nanos = u64::try_from(info.number("subject_delete_marker_ttl")).unwrap_or(0);
    let markers = match nanos {
        0 => "no delete markers of the server's own".to_owned(),
        nanos => {
            format!("delete markers for {}", as_setting(std::time::Duration::from_nanos(nanos)))
        }
    };
    let plural = if replicas == 1 { "" } else { "s" };
    format!("{replicas} replica{plural}, {} storage, {markers}", info.word("storage"))
}
