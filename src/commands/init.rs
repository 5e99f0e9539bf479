//! `init`: to come.
