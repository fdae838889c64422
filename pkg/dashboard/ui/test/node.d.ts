// As much of Node as the tests use; the page itself knows nothing of it.
declare module "node:assert/strict";
declare module "node:test";
