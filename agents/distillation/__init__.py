"""Students for the phone, distilled from a teacher in the cloud."""
