"""From files to a catalogue and impressions: MIND, RecPrompt's rows, a synthetic MIND; fetching and checking them."""
