"""The work itself: ingest, pretrain, finetune, fewshot, and what they share."""
