"""Security on a host: rules into flows, what they count, and whom they have denied."""
