//! `check`: to come.
