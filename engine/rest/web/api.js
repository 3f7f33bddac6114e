// Requests to the REST API. Addresses are relative to the page, so any prefix or proxy in front works.

const BASE = new URL("../", import.meta.url);

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(new URL(path, BASE), { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The JobManager does not answer. Trying again…", 0);
  }
  if (!response.ok) {
    const text = await response.text();
    let message = text;
    try { message = JSON.parse(text).errors.join("\n"); } catch { /* a proxy's page, not ours */ }
    if (message.trimStart().startsWith("<")) message = `${response.status} ${response.statusText}`;
    throw new ApiError(message, response.status);
  }
  return response;
}

export const url = (path) => new URL(path, BASE).href;
export const getJson = async (path, signal) => (await send(path, { signal })).json();
export const getText = async (path, signal) => (await send(path, { signal })).text();
export const remove = async (path) => (await send(path, { method: "DELETE" })).json();
export const post = async (path, fields) =>
  (await send(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields) })).json();

/** Upload with progress, which fetch cannot tell. */
export function upload(path, file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", new URL(path, BASE));
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onerror = () => reject(new ApiError("The upload was cut off.", 0));
    request.onload = () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* not ours */ }
      if (request.status >= 200 && request.status < 300) resolve(answer);
      else reject(new ApiError((answer.errors || [`${request.status} ${request.statusText}`]).join("\n"), request.status));
    };
    const form = new FormData();
    form.append("jarfile", file, file.name);
    request.send(form);
  });
}

export const quoted = encodeURIComponent;
