"""Large recommenders of the cloud: LightGCN, SASRec and DeepFM, alone and on the cloud's logs."""
