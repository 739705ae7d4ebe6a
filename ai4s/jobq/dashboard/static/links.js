// The addresses of pages: what an id is can be seen by its shape.

const CALL_ID = /^([a-z2-7]{16}-\d{12}|key-[0-9a-f]{40}|msg-[0-9a-f]{32}|.+\.\d+)$/;

export const batchHref = (id) => `#/batch/${encodeURIComponent(id)}`;

export const callHref = (id) => `#/call/${encodeURIComponent(id)}`;

export const hrefOf = (id) => (CALL_ID.test(id) ? callHref(id) : batchHref(id));
