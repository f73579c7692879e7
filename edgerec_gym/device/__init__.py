"""Models on a device: files, sessions, beam search; without torch, knows no agent."""
