//! The suite that every storage runs.
