"""Attacks that bound epsilon from below: what an attacker really finds, beside what a guarantee allows at most."""
