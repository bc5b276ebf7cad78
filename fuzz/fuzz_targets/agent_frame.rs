//! Frames of an agent's socket: what decodes as a request or as a reply encodes to what says the same.

#![no_main]

use hushfs::keystore::agent::{
    Reply, Request,
    frame::{self, REPLY_SIZE_MAX, REQUEST_SIZE_MAX},
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|bytes: &[u8]| {
    check::<Request>(bytes, REQUEST_SIZE_MAX);
    check::<Reply>(bytes, REPLY_SIZE_MAX);
});

fn check<T: Serialize + DeserializeOwned>(bytes: &[u8], size_max: usize) {
    if let Ok(message) = frame::decode::<T>(bytes) {
        let encoded = frame::encode(&message, size_max).expect("it was not too large");
        // Not to the same bytes: pairs of a context come in any order, and what only a newer hushfs knows has another name here.
        let again = frame::decode::<T>(&encoded[4..]).expect("it was encoded here");
        assert_eq!(*encoded, *frame::encode(&again, size_max).expect("it was not too large"));
    }
}
