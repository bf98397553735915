"""Samples: where they come from, how they are cut into shards, what one worker keeps."""
