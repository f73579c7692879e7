"""Models on a device: files, sessions, beam search. Works without torch, and knows no agent."""
