//! What `dstack verify` and the verifier service are given: bytes of any kind, recognised by content and judged.
#![no_main]

use dstack_fuzz as _;
use dstack_verdict::{Question, Subject, Word, guess_platform, judge, refuse_before_papers};
use libfuzzer_sys::fuzz_target;

const NOW: u64 = 1_742_762_172;

fuzz_target!(|data: &[u8]| {
    let _ = guess_platform(data);
    let Ok(mut subject) = Subject::recognise(data) else { return };
    let question = Question::open(NOW);
    let _ = refuse_before_papers(&subject, &question, "fuzz");
    // Without the vendor's papers nothing can be proven.
    let verdict = judge(&subject, &question, "fuzz");
    assert_eq!(verdict.word, Word::NotVerified, "verified without papers");
    let _ = subject.set_ccel(data);
});
