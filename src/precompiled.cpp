// Carries the precompiled header that the rooms reuse; holds no code.
