"""Is an LSTM over the layers worth it? The study that asks, and its pages.

`run` makes the runs: rows from `data`, what is compared from `poolings` and `regimes`, training in `frozen` and
`finetuned`. `records` and `store` keep them. `tables` shows them, with `statistics`, `differences` and `plots`.
The study is no part of the package: both commands are given in a checkout.
"""
