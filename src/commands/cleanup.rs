//! `cleanup`: to come.
