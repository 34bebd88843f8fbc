"""How much memory a run takes: counting it while it runs, predicting it before, and choosing settings that fit."""
