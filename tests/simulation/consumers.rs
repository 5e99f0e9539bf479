//! On which member of a cluster a consumer is, and who answers for it: it is not
//! replicated, and goes with its member.

use crate::model::Answer;
use crate::model::session::Publish;
use crate::network::ConnId;
use crate::rng::Rng;
use crate::world::World;

/// The consumer that is asked for messages.
pub fn pulled(publish: &Publish) -> Option<&str> {
    let call = publish.subject.strip_prefix("$JS.API.CONSUMER.MSG.NEXT.")?;
    Some(call.split_once('.')?.1)
}

/// The consumer that is to be made.
pub fn created(publish: &Publish) -> Option<String> {
    let call = publish.subject.strip_prefix("$JS.API.CONSUMER.CREATE.")?;
    call.split('.').nth(1).map(str::to_owned)
}

impl World {
    /// A consumer is on one member of the cluster, and goes with it.
    pub fn place_consumer(&mut self, name: String, leader: usize) {
        let members = self.cluster.servers.len() as u64;
        let any = Rng::new(self.plan.seed, 60 + self.now).below(members) as usize;
        let home = if self.cluster.reaches(leader, any) { any } else { leader };
        self.cluster.homes.insert(name, home);
    }

    /// A consumer is asked for what it has.
    pub fn pull(&mut self, server: usize, conn: ConnId, publish: &Publish, name: &str) {
        let home = self.cluster.homes.get(name).copied();
        let version = &self.cluster.servers[server].version;
        let nobody = Answer::no_responders(&publish.subject, version);
        let answer = match home {
            None => Some(nobody),
            Some(home) if self.cluster.reaches(server, home) => {
                let now = self.cluster.wall(home, self.now);
                self.cluster.take(home, publish, now).0
            }
            // It is not there, or does not answer.
            Some(home) if self.cluster.servers[home].down > 0 => {
                self.cluster.servers[home].powered.then_some(nobody)
            }
            Some(_) => None,
        };
        if let Some(answer) = answer {
            self.reply(server, conn, publish, answer, 50);
        }
    }
}
