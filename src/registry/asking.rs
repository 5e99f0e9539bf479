//! Questions to the registry that may be asked twice: several leave at once, and
//! what is not answered is asked again, of one member of a cluster after the
//! other.

use std::time::{Duration, Instant};

use super::failure::RegistryError;
use super::{Registry, no_session};
use crate::jetstream::replies::{self, ApiError};
use crate::nats::{Arrival, Incoming, Request, RequestError, Session, Token, answered};

/// A question that was not answered by then is asked again: a direct get goes
/// to any replica, and that may be the one that hangs.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The same for questions that are new each time: a consumer that was placed on
/// a dead member of the cluster is never announced, however long one waits.
const ASK_OTHERWISE: Duration = Duration::from_millis(250);
/// So many of those leave together, at most: with one member of three dead, a
/// third of them is never answered.
const SIDE_BY_SIDE: u32 = 4;
/// How long the first member of a cluster may take to answer before another one
/// is asked; after each that was silent the next one has twice as long, up to a limit.
const MEMBER_PATIENCE: Duration = Duration::from_millis(700);
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// Sessions with a server that is alone that may end under one question: more than
/// that are an outage.
const SESSIONS_LOST: u32 = 3;
/// Between two rounds in which each member said that the cluster has no leader:
/// choosing one takes 4 to 10 s.
const ELECTION_PAUSE: Duration = Duration::from_millis(250);

impl Registry {
    /// As `request`, for a question that may be asked twice.
    pub fn ask(
        &mut self,
        doing: &'static str,
        request: &Request,
    ) -> Result<Incoming, RegistryError> {
        let [answer] = self.ask_all([(doing, request.clone())]);
        answer.map(|answer| answer.message)
    }

    /// Sends several questions at once and waits for all answers, within one
    /// timeout. What is not answered is asked again twice a second: a cluster
    /// that is choosing a leader does not answer at all, and nobody tells when
    /// it has.
    pub fn ask_all<const N: usize>(
        &mut self,
        questions: [(&'static str, Request); N],
    ) -> [Result<Answer, RegistryError>; N] {
        self.ask_until(questions, |open| open.iter().all(Question::is_answered))
    }

    /// As `ask_all`, until enough is known.
    pub(super) fn ask_until<const N: usize>(
        &mut self,
        questions: [(&'static str, Request); N],
        is_enough: impl Fn(&[Question]) -> bool,
    ) -> [Result<Answer, RegistryError>; N] {
        let questions = questions.map(|(doing, request)| (doing, Ask::Same(request)));
        let deadline = self.now() + self.timeout();
        self.ask_by(&questions, is_enough, deadline)
    }

    /// As `ask_all`, through one member of the cluster after the other: one that
    /// is cut off from the others lets clients in all the same and answers
    /// nothing, or that there is no leader. Where the session ends it is asked on
    /// a fresh one.
    pub fn ask_anywhere<const N: usize>(
        &mut self,
        questions: &[(&'static str, Ask); N],
    ) -> [Result<Answer, RegistryError>; N] {
        self.ask_anywhere_until(questions, self.now() + self.timeout())
    }

    /// As `ask_anywhere`, until then.
    pub fn ask_anywhere_until<const N: usize>(
        &mut self,
        questions: &[(&'static str, Ask); N],
        deadline: Instant,
    ) -> [Result<Answer, RegistryError>; N] {
        let mut patience = self.patience(MEMBER_PATIENCE);
        let mut members = self.connector.choices();
        let mut worst = Doubt::Refuses;
        // Who says that there is no leader says more than who is silent afterwards.
        let mut said = None;
        let mut sessions_lost = 0;
        loop {
            let is_last = self.connector.choices() < 2;
            let until = if is_last { deadline } else { deadline.min(self.now() + patience) };
            let all = |open: &[Question]| open.iter().all(Question::is_answered);
            let answers = self.ask_by(questions, all, until);
            let left = deadline.saturating_duration_since(self.now());
            let doubts = answers.iter().filter_map(doubt_about_member);
            let Some(doubt) = doubts.max() else { return answers };
            let (answers, is_said) = match said.take() {
                Some(said) if doubt == Doubt::Silent => (said, true),
                _ => (answers, doubt != Doubt::Silent),
            };
            let is_lost = self.session().is_none();
            sessions_lost += u32::from(is_lost);
            let is_final = match is_lost {
                true => sessions_lost > SESSIONS_LOST,
                false => doubt != Doubt::Leaderless,
            };
            if self.stop_requested() || left.is_zero() || (is_last && is_final) {
                return answers;
            }
            worst = worst.max(doubt);
            members = members.saturating_sub(1);
            if members == 0 {
                match worst {
                    // Where everybody says no there is nobody left to ask.
                    Doubt::Refuses => return answers,
                    // They may be choosing a leader, and say so at once.
                    Doubt::Leaderless => {
                        self.pause_until(deadline.min(self.now() + ELECTION_PAUSE));
                    }
                    Doubt::Silent => {}
                }
                (members, worst) = (self.connector.choices(), Doubt::Refuses);
            }
            if !is_last || is_lost {
                if self.move_on(left).is_err() {
                    return answers;
                }
                if doubt == Doubt::Silent && !is_lost {
                    patience = patience.max(LONGEST_PATIENCE.min(patience * 2));
                }
            }
            said = is_said.then_some(answers);
        }
    }

    /// Asks until enough is known, or `deadline` has come.
    fn ask_by<const N: usize>(
        &mut self,
        questions: &[(&'static str, Ask); N],
        is_enough: impl Fn(&[Question]) -> bool,
        deadline: Instant,
    ) -> [Result<Answer, RegistryError>; N] {
        let began = self.now();
        let mut open = questions.each_ref().map(|(doing, ask)| Question {
            doing,
            ask,
            tokens: Vec::new(),
            answer: None,
        });
        let failed = self.exchange(&mut open, &is_enough, deadline).err();
        self.answer_time = self.now().saturating_duration_since(began);
        open.map(|question| {
            let none = || Err(failed.clone().unwrap_or(RequestError::TimedOut));
            let answer = question.answer.unwrap_or_else(none);
            answer.map_err(|error| RegistryError::Request(question.doing, error))
        })
    }

    /// Asks until enough questions have their answer. The error is why the
    /// others have none.
    fn exchange(
        &mut self,
        open: &mut [Question],
        is_enough: &dyn Fn(&[Question]) -> bool,
        deadline: Instant,
    ) -> Result<(), RequestError> {
        let session = self.session.as_ref().ok_or_else(no_session)?;
        let stopping = session.stop_requested();
        let otherwise = open.iter().any(|question| matches!(question.ask, Ask::Otherwise(_)));
        let pause = if otherwise { ASK_OTHERWISE } else { ASK_AGAIN };
        // Where everything takes long, more questions make it longer.
        let pause = pause.max(session.greeting * 2);
        let mut round = 0;
        while !is_enough(open) {
            let Registry { session, turns, .. } = self;
            let session = session.as_mut().ok_or_else(no_session)?;
            for question in open.iter_mut().filter(|question| !question.is_answered()) {
                question.send(session, round, turns);
            }
            round += 1;
            let until = deadline.min(self.now() + pause);
            while !is_enough(open) {
                let session = self.session.as_mut().ok_or_else(no_session)?;
                match session.receive(until) {
                    Ok(arrival) => {
                        // The answer to what was asked beside a heartbeat may come
                        // in the middle of this.
                        if let Some(other) = take_answer(open, arrival, self.boot_clock()) {
                            self.take_aside(other);
                        }
                    }
                    Err(RequestError::TimedOut)
                        if until < deadline && session.stop_requested() == stopping =>
                    {
                        break;
                    }
                    Err(error) => return Err(error),
                }
                if self.now() >= until {
                    break;
                }
            }
            if self.now() >= deadline {
                return Err(RequestError::TimedOut);
            }
        }
        Ok(())
    }
}

/// What is asked.
pub enum Ask {
    /// This, and the same again.
    Same(Request),
    /// The request for this turn; no other question of the registry has its
    /// number.
    Otherwise(Box<dyn Fn(u32) -> Request>),
}

/// The answer to a question.
pub struct Answer {
    /// The reply.
    pub message: Incoming,
    /// Where the boot clock stood when it came.
    pub arrived: Duration,
    /// The number of the question, where each had another.
    pub turn: u32,
}

/// Why another member of the cluster may know more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    /// It says that it cannot tell.
    Refuses,
    /// It knows of no leader of the cluster, which may have one in some seconds.
    Leaderless,
    /// It says nothing.
    Silent,
}

fn doubt_about_member(answer: &Result<Answer, RegistryError>) -> Option<Doubt> {
    match answer {
        Err(RegistryError::Request(_, RequestError::TimedOut | RequestError::Lost(_))) => {
            Some(Doubt::Silent)
        }
        Err(RegistryError::Request(_, RequestError::NoResponders)) => Some(Doubt::Refuses),
        Err(_) => None,
        Ok(answer) => {
            let refusal = replies::refusal_in(answer.message.data())?;
            (refusal.err_code == ApiError::NO_LEADER).then_some(Doubt::Leaderless)
        }
    }
}

/// A question that is under way.
pub(super) struct Question<'a> {
    doing: &'static str,
    ask: &'a Ask,
    /// Of each time it was asked, with its number.
    tokens: Vec<(Token, u32)>,
    answer: Option<Result<Answer, RequestError>>,
}

impl Question<'_> {
    pub(super) fn is_answered(&self) -> bool {
        self.answer.is_some()
    }

    /// Whether what was asked cannot be had.
    pub(super) fn is_refused(&self) -> bool {
        let error = |answer: &Answer| replies::refusal_in(answer.message.data()).is_some();
        self.answer.as_ref().is_some_and(|answer| answer.as_ref().map_or(true, error))
    }

    /// Sends it, for the first time in round 0.
    fn send(&mut self, session: &mut Session, round: u32, turns: &mut u32) {
        let copies = match self.ask {
            Ask::Same(_) => 1,
            Ask::Otherwise(_) => round.clamp(1, SIDE_BY_SIDE),
        };
        for _ in 0..copies {
            let sent = match self.ask {
                Ask::Same(request) => session.send(request),
                Ask::Otherwise(request) => {
                    *turns = turns.wrapping_add(1);
                    session.send(&request(*turns))
                }
            };
            match sent {
                Ok(token) => self.tokens.push((token, *turns)),
                Err(error) => self.answer = Some(Err(error)),
            }
        }
    }
}

/// Gives an arrival to the question that it answers, or back where there is none.
fn take_answer(open: &mut [Question], arrival: Arrival, arrived: Duration) -> Option<Arrival> {
    let token = match &arrival {
        Arrival::Message(Some(token), _) | Arrival::Refused(token, _) => *token,
        Arrival::Message(None, _) => return None,
    };
    for question in open {
        let asked = question.tokens.iter().find(|(asked, _)| *asked == token);
        let Some(&(_, turn)) = asked else { continue };
        let answer = match arrival {
            Arrival::Message(_, message) => answered(message),
            Arrival::Refused(_, what) => Err(RequestError::Denied(what)),
        };
        let answer = answer.map(|message| Answer { message, arrived, turn });
        question.answer.get_or_insert(answer);
        return None;
    }
    Some(arrival)
}
