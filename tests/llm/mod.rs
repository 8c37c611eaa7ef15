//! LLM providers: recorded traffic, faults on the wire, and the decoder's promises.
